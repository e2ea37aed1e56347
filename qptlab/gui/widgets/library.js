// A large library is part of one widget that all views share. It runs once per page.

async function load(shared) {
  const source = shared.get("source");
  if (!source.byteLength) throw new Error(shared.get("missing"));
  // The script becomes a module of its own; otherwise an AMD loader of the page would intercept it.
  const parts = [
    "const module = { exports: {} };\n(function (module, exports, define) {\n",
    source,
    "\n}).call(globalThis, module, module.exports, undefined);\nexport default module.exports;\n",
  ];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  try {
    return (await import(/* webpackIgnore: true */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function library(model) {
  const loaded = (globalThis.__qptlabLibraries ??= {});
  const shared = await model.widget_manager.get_model(model.get("library").slice("IPY_MODEL_".length));
  return (loaded[shared.get("name")] ??= load(shared));
}
