// A plotly figure that is drawn again whenever the kernel sends it; zoom and hidden traces stay as they are.

function config(Plotly, model) {
  const file = (format) => ({ format, filename: model.get("name"), scale: format === "png" ? 2 : 1 });
  return {
    displaylogo: false,
    toImageButtonOptions: file("svg"),
    modeBarButtonsToRemove: ["sendDataToCloud", "lasso2d", "select2d"],
    modeBarButtonsToAdd: [{
      name: "Download plot as png", icon: Plotly.Icons.disk, click: (plot) => Plotly.downloadImage(plot, file("png")),
    }],
  };
}

export default {
  async render({ model, el }) {
    const box = document.createElement("div");
    box.style.width = "100%";
    box.setAttribute("role", "img");
    el.appendChild(box);
    let Plotly;
    try {
      Plotly = await library(model);
    } catch (error) {
      box.setAttribute("role", "alert");
      box.textContent = `The plot cannot be drawn: ${error.message}`;
      return;
    }
    const describe = () => box.setAttribute("aria-label", model.get("label"));
    const draw = async () => {
      const { data, layout } = JSON.parse(model.get("figure_json"));
      box.style.height = `${layout.height ?? 400}px`;
      await Plotly.react(box, data, layout, config(Plotly, model));
    };
    describe();
    await draw();
    box.on("plotly_click", ({ points }) => {
      const [point] = points;
      model.send({ click: [point.curveNumber, point.pointIndex ?? point.pointNumber] });
    });
    // A plot in a hidden tab has no size; it gets one when the tab is shown.
    const watcher = new ResizeObserver(() => box.offsetWidth && Plotly.Plots.resize(box));
    watcher.observe(el);
    model.on("change:figure_json", draw);
    model.on("change:label", describe);
    return () => {
      watcher.disconnect();
      model.off("change:figure_json", draw);
      model.off("change:label", describe);
      Plotly.purge(box);
    };
  },
};
