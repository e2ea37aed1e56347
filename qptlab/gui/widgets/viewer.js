// Live orbital viewer on 3Dmol.js: molecules with two-signed isosurfaces, cameras linked.
// The view is created once; updates replace models and surfaces and do not move the camera.

const POSITIVE = "#0072B2"; // Okabe–Ito blue
const NEGATIVE = "#E69F00"; // Okabe–Ito orange
const MAX_CONTEXTS = 8; // Chromium closes the oldest of more than 16 WebGL contexts without a message
const FIT = 2.4; // chosen by eye for molecules from hydrogen to alanine dipeptide
const LOBES = 3.5; // width that orbitals extend beyond the nuclei, both sides together, Å
const open = (globalThis.__qptlabViewers ??= []);

function sentence(box, text) {
  const p = document.createElement("p");
  p.className = "qptlab-viewer-note";
  p.setAttribute("role", "alert");
  p.textContent = text;
  box.replaceChildren(p);
  return p;
}

function floats(view) {
  // A copy, because the buffer of a message may start at an address that is no multiple of four bytes.
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

function volumeOf(model, bytes) {
  const [nx, ny, nz] = model.get("shape");
  const [ox, oy, oz] = model.get("origin_angstrom");
  const [ux, uy, uz] = model.get("spacing_angstrom");
  const volume = new $3Dmol.VolumeData("", "");
  volume.size = { x: nx, y: ny, z: nz };
  volume.origin = new $3Dmol.Vector3(ox, oy, oz);
  volume.unit = new $3Dmol.Vector3(ux, uy, uz);
  volume.data = floats(bytes);
  return volume;
}

function xyzOf(model) {
  const symbols = model.get("symbols");
  const lines = model.get("positions_angstrom").map((r, i) => `${symbols[i]} ${r.join(" ")}`);
  return `${symbols.length}\n\n${lines.join("\n")}\n`;
}

class Scene {
  constructor(model, el) {
    this.model = model;
    this.box = document.createElement("div");
    this.box.className = "qptlab-viewer";
    el.appendChild(this.box);
    this.panels = [];
    this.volumes = [];
  }

  async activate() {
    try {
      globalThis.$3Dmol ??= await library(this.model);
    } catch (error) {
      sentence(this.box, error.message);
      this.report("no-script");
      return;
    }
    if (this.isGone) return;
    while (open.length >= MAX_CONTEXTS) open.shift().retire();
    open.push(this);
    this.read();
  }

  build(count) {
    this.dispose();
    this.box.replaceChildren();
    this.isDrawing = false;
    for (let i = 0; i < count; i++) this.panels.push(this.panel(i));
    for (const { viewer } of this.panels) viewer.setViewChangeCallback((view) => this.follow(viewer, view));
    this.watcher = new ResizeObserver(() => this.panels.forEach(({ viewer }) => viewer.resize()));
    this.watcher.observe(this.box);
    this.themes = new MutationObserver(() => this.guarded(() => this.paint()));
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "class"] });
    this.guarded(() => this.paint());
    this.fresh = true;
  }

  // The other panel follows. The link of 3Dmol itself would also draw both panels when one of them gets new contents.
  follow(turned, view) {
    if (this.isDrawing) return;
    this.isDrawing = true;
    for (const { viewer } of this.panels) if (viewer !== turned) viewer.setView(view, true);
    this.isDrawing = false;
  }

  panel(index) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("div");
    const caption = document.createElement("figcaption");
    canvas.className = "qptlab-viewer-canvas";
    canvas.style.height = `${this.model.get("height")}px`;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.addEventListener("keydown", (event) => this.turn(event, index));
    const save = document.createElement("button");
    save.textContent = "PNG";
    save.title = "Save this view as a picture";
    save.className = "qptlab-viewer-save";
    save.addEventListener("click", () => this.guarded(() => this.savePicture(index)));
    const head = document.createElement("div");
    head.className = "qptlab-viewer-head";
    head.append(caption, save);
    figure.append(head, canvas);
    this.box.appendChild(figure);
    const viewer = $3Dmol.createViewer(canvas, { antialias: true });
    return { canvas, caption, viewer };
  }

  // The background is opaque in the colour of the theme: on a transparent one, translucent surfaces fade.
  paint() {
    const colour = getComputedStyle(this.box).backgroundColor;
    const [r, g, b] = colour.match(/[\d.]+/g)?.map(Number) ?? [255, 255, 255];
    for (const { viewer } of this.panels) {
      viewer.setBackgroundColor((r << 16) | (g << 8) | b, 1);
      this.write(viewer);
      viewer.render();
    }
  }

  turn(event, index) {
    const turns = { ArrowLeft: [-8, "y"], ArrowRight: [8, "y"], ArrowUp: [-8, "x"], ArrowDown: [8, "x"] };
    if (!(event.key in turns)) return;
    event.preventDefault();
    event.stopPropagation();
    this.panels[index].viewer.rotate(...turns[event.key]);
  }

  savePicture(index) {
    const link = document.createElement("a");
    link.href = this.panels[index].viewer.pngURI();
    link.download = `${this.model.get("name")}${index ? "-second" : ""}.png`;
    link.click();
  }

  read() {
    const began = performance.now();
    const bytes = this.model.get("volumes");
    const captions = this.model.get("captions");
    const count = Math.max(bytes.length, 1);
    if (!this.model.get("symbols").length) {
      sentence(this.box, this.model.get("placeholder"));
      this.dispose();
      return;
    }
    if (this.panels.length !== count) this.build(count);
    this.volumes = bytes.map((view) => volumeOf(this.model, view));
    this.potentials = this.model.get("potentials").map((view) => volumeOf(this.model, view));
    this.panels.forEach(({ viewer, caption, canvas }, i) => {
      viewer.removeAllModels();
      viewer.addModel(xyzOf(this.model), "xyz");
      viewer.setStyle({}, { stick: { radius: 0.11 }, sphere: { scale: 0.22 } });
      caption.textContent = captions[i] ?? "";
      this.write(viewer);
      canvas.setAttribute("aria-label", `${captions[i] ?? "molecule"}; arrow keys turn the view`);
    });
    this.surfaces(began);
  }

  // Symbols and numbers of atoms in the colour of the theme; they appear with the next drawing.
  write(viewer) {
    viewer.removeAllLabels();
    if (!this.model.get("labels")) return;
    const style = getComputedStyle(this.box);
    const symbols = this.model.get("symbols");
    this.model.get("positions_angstrom").forEach(([x, y, z], i) => {
      viewer.addLabel(`${symbols[i]}${i}`, {
        position: { x, y, z }, fontSize: 12, fontColor: style.color, inFront: true,
        backgroundColor: style.backgroundColor, backgroundOpacity: 0.6, alignment: "bottomCenter",
      }, undefined, true); // true: do not draw after every label
    });
  }

  labels() {
    for (const { viewer } of this.panels) {
      this.write(viewer);
      viewer.render();
    }
  }

  link(viewer) {
    const atoms = this.model.get("positions_angstrom");
    for (const [i, j, width] of this.model.get("links")) {
      const [a, b] = [atoms[i], atoms[j]].map(([x, y, z]) => ({ x, y, z }));
      viewer.addCylinder({ start: a, end: b, radius: 0.02 + 0.18 * width, color: POSITIVE, opacity: 0.35 + 0.5 * width,
        fromCap: 1, toCap: 1 });
    }
  }

  surfaces(began = performance.now()) {
    const isovalue = this.model.get("isovalue");
    const opacity = this.model.get("opacity");
    const limit = this.model.get("potential_limit");
    this.isDrawing = true;
    this.panels.forEach(({ viewer }, i) => {
      viewer.removeAllShapes();
      const volume = this.volumes[i];
      const potential = this.potentials?.[i];
      if (volume && potential) {
        const volscheme = new $3Dmol.Gradient.RWB(-limit, limit);
        viewer.addIsosurface(volume, { isoval: isovalue, opacity, smoothness: 4, voldata: potential, volscheme });
      } else {
        for (const [sign, color] of volume ? [[1, POSITIVE], [-1, NEGATIVE]] : []) {
          viewer.addIsosurface(volume, { isoval: sign * isovalue, color, opacity, smoothness: 4 });
        }
      }
      this.link(viewer);
      if (this.fresh) viewer.zoomTo();
      viewer.render();
    });
    this.isDrawing = false;
    if (this.fresh && this.panels.length) this.aim(this.panels[0].viewer);
    this.fresh = false;
    this.report("ready", performance.now() - began);
  }

  // A first view in which the lobes fit and a p orbital along an axis does not hide half of itself.
  aim(viewer) {
    const atoms = this.model.get("positions_angstrom");
    const spans = [0, 1, 2].map((k) => Math.max(...atoms.map((r) => r[k])) - Math.min(...atoms.map((r) => r[k])));
    const size = Math.hypot(...spans);
    viewer.zoom((FIT * Math.max(size, 5)) / (size + LOBES)); // zoomTo never looks closer than 5 Å
    viewer.rotate(-65, "x");
    viewer.rotate(20, "y");
  }

  report(status, milliseconds = 0) {
    this.model.set("status", status);
    this.model.set("render_ms", milliseconds);
    this.model.save_changes();
  }

  retire() {
    this.dispose();
    sentence(this.box, "This view was closed, because a browser shows only a few 3D views at a time. ");
    const button = document.createElement("button");
    button.textContent = "Show again";
    button.addEventListener("click", () => this.activate());
    this.box.appendChild(button);
  }

  dispose() {
    this.watcher?.disconnect();
    this.themes?.disconnect();
    for (const { canvas, viewer } of this.panels) {
      viewer.removeAllShapes();
      viewer.removeAllModels();
      viewer.removeAllLabels();
      const surface = canvas.querySelector("canvas");
      const context = surface?.getContext("webgl2") ?? surface?.getContext("webgl");
      context?.getExtension("WEBGL_lose_context")?.loseContext();
    }
    this.panels = [];
  }

  guarded(action) {
    try {
      action();
    } catch (error) {
      sentence(this.box, `The 3D view failed: ${error.message ?? error}`);
      this.dispose();
      this.report(`error: ${error.message ?? error}`);
    }
  }
}

export default {
  render({ model, el }) {
    const scene = new Scene(model, el);
    const read = () => open.includes(scene) && scene.guarded(() => scene.read());
    const surfaces = () => scene.guarded(() => scene.surfaces());
    const labels = () => scene.guarded(() => scene.labels());
    model.on("change:labels", labels);
    model.on("change:revision", read);
    model.on("change:isovalue", surfaces);
    model.on("change:opacity", surfaces);
    // The box has no size until it is in the page, and 3Dmol asks for one.
    requestAnimationFrame(() => scene.activate().catch((error) => scene.guarded(() => { throw error; })));
    return () => {
      model.off("change:revision", read);
      model.off("change:isovalue", surfaces);
      model.off("change:opacity", surfaces);
      model.off("change:labels", labels);
      const place = open.indexOf(scene);
      if (place >= 0) open.splice(place, 1);
      scene.isGone = true;
      scene.dispose();
    };
  },
};
