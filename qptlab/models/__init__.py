"""Models: from the integrals of a geometry to a prediction. They do not know how they are judged."""
