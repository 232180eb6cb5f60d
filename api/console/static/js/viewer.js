// <mhs-viewer src="/console/scans/7" annotations="/console/jobs/9/annotations.geojson" request-dialog="id">

import { ask } from "./console.js";
import { Overlay } from "./overlay.js";

// OpenSeadragon would add a <style> of its own, which the page's policy forbids; it stops at one that has this mark. An
// element without a namespace is none to the browser. What that style would say is in console.css.
const mark = document.createElementNS(null, "style");
mark.setAttribute("data-openseadragon-mobile-css", "true");
document.head.append(mark);

class Viewer extends HTMLElement {
  connectedCallback() {
    this.stage = this.querySelector(".stage");
    this.note = this.querySelector(".stage-note");
    this.open().catch((error) => this.say(`The slide cannot be shown: ${error.message}`));
  }
  disconnectedCallback() {
    this.viewer?.destroy();
    this.worker?.terminate();
    this.menu?.remove();
  }
  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  async open() {
    if (!window.OpenSeadragon) throw new Error("the viewer's files are missing; run `make setup` on the platform's machine");
    const src = this.getAttribute("src");
    const slow = setTimeout(() => this.say("Fetching the slide; a large one takes a while …"), 1500);
    const response = await ask(`${src}/slide.json`);
    clearTimeout(slow);
    if (!response) return;
    const facts = await response.json().catch(() => ({ detail: `the platform answered ${response.status}` }));
    if (!response.ok) throw new Error(facts.detail);
    this.facts = facts;
    const viewer = OpenSeadragon({
      element: this.querySelector(".osd"),
      tileSources: { Image: { xmlns: "http://schemas.microsoft.com/deepzoom/2008", Url: `${src}/dz_files/`, Format: "jpeg", Overlap: "0", TileSize: String(facts.tile), Size: { Width: String(facts.width), Height: String(facts.height) } } },
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorHeight: 96,
      navigatorWidth: 140,
      navigatorAutoFade: true,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      animationTime: 0.5,
      springStiffness: 9,
      immediateRender: true,
      imageLoaderLimit: 4,
      timeout: 60000,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    this.viewer = viewer;
    this.osd = viewer;
    viewer.canvas.setAttribute("role", "application");
    viewer.canvas.setAttribute("aria-label", "Slide: arrow keys move, plus and minus zoom, 0 shows the whole slide");
    viewer.addHandler("open", () => {
      this.say("");
      this.dataset.ready = "slide";
      this.scale();
      if (this.getAttribute("annotations")) this.annotations();
    });
    viewer.addHandler("open-failed", () => this.say("The slide cannot be shown."));
    viewer.addHandler("tile-load-failed", () => this.say("Some of the slide could not be loaded. Move or zoom to try again."));
    viewer.addHandler("tile-loaded", () => { if (this.note.textContent.startsWith("Some")) this.say(""); });
    viewer.addHandler("update-viewport", () => this.scale());
    viewer.addHandler("canvas-key", (event) => this.key(event));
    this.addEventListener("click", (event) => this.tool(event.target.closest("[data-do]")?.dataset.do));
    if (this.getAttribute("request-dialog")) this.stage.addEventListener("contextmenu", (event) => this.context(event));
  }

  key(event) {
    const { key } = event.originalEvent;
    if (/^[a-zA-Z]$/.test(key)) event.preventDefaultAction = true; // letters would turn and flip the slide
    if (key === "0" || key === "Home") {
      event.preventDefaultAction = true;
      this.viewer.viewport.goHome();
    }
  }

  tool(name) {
    const viewport = this.viewer?.viewport;
    if (!viewport || !name) return;
    if (name === "in") viewport.zoomBy(1.6);
    if (name === "out") viewport.zoomBy(1 / 1.6);
    if (name === "fit") viewport.goHome();
    if (name === "full") {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.stage.requestFullscreen?.().catch(() => this.say("This browser does not allow full screen here."));
    }
    viewport.applyConstraints();
  }

  /** Scale bar in µm and magnification, as far as the file tells its microns per pixel. */
  scale() {
    const zoom = this.viewer.viewport.viewportToImageZoom(this.viewer.viewport.getZoom(true)); // screen px per level-0 px
    const [bar, mag] = [this.querySelector(".scale"), this.querySelector(".mag")];
    const { mpp, power } = this.facts;
    if (mpp) {
      const perPixel = mpp[0] / zoom;
      const nice = niceBelow(perPixel * 140);
      const text = nice >= 1000 ? `${nice / 1000} mm` : `${nice} µm`;
      bar.querySelector("span").textContent = text;
      bar.querySelector(".bar").style.width = `${nice / perPixel}px`;
      bar.hidden = false;
    }
    const at = power ? power * zoom : mpp ? (10 / mpp[0]) * zoom : null;
    mag.textContent = at ? `${at < 1 ? at.toFixed(2) : at < 10 ? at.toFixed(1) : Math.round(at)}×` : `${Math.round(100 * zoom)} %`;
    mag.hidden = false;
  }

  context(event) {
    event.preventDefault();
    this.menu?.remove();
    const menu = document.createElement("div");
    menu.className = "menu";
    menu.setAttribute("role", "menu");
    const item = document.createElement("button");
    item.type = "button";
    item.setAttribute("role", "menuitem");
    item.textContent = "AI request …";
    item.dataset.dialog = this.getAttribute("request-dialog");
    menu.append(item);
    document.body.append(menu);
    menu.style.left = `${Math.min(event.clientX, innerWidth - 190)}px`;
    menu.style.top = `${Math.min(event.clientY, innerHeight - 50)}px`;
    this.menu = menu;
    const close = (e) => {
      if (e.type === "keydown" && e.key !== "Escape") return;
      setTimeout(() => menu.remove(), 0);
      removeEventListener("pointerdown", outside, true);
      removeEventListener("keydown", close, true);
    };
    const outside = (e) => { if (!menu.contains(e.target)) close(e); };
    addEventListener("pointerdown", outside, true);
    addEventListener("keydown", close, true);
    item.addEventListener("click", close);
    item.focus();
  }

  annotations() {
    this.say("Loading the annotations …");
    this.worker = new Worker(new URL("./annotations-worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      this.worker.terminate();
      if (data.error) {
        this.say(`The annotations cannot be shown: ${data.error}.`);
        return;
      }
      this.say("");
      this.overlay = new Overlay(this.viewer, this.stage, data.packed);
      this.layers(data.packed);
      this.dataset.ready = "annotations";
    };
    this.worker.onerror = () => this.say("The annotations cannot be shown.");
    this.worker.postMessage(new URL(this.getAttribute("annotations"), location.href).href);
  }

  layers(packed) {
    const side = this.querySelector(".layers");
    const title = document.createElement("h3");
    title.textContent = `${packed.features.toLocaleString("en").replaceAll(",", "\u202f")} annotation${packed.features === 1 ? "" : "s"}`;
    const list = document.createElement("ul");
    packed.classes.forEach((of, index) => {
      const item = document.createElement("li");
      const label = document.createElement("label");
      label.className = "check";
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      box.addEventListener("change", () => this.overlay.set(index, box.checked));
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = `rgb(${of.rgb.join(" ")})`;
      const name = Object.assign(document.createElement("span"), { textContent: of.name });
      const count = Object.assign(document.createElement("span"), { textContent: of.count.toLocaleString("en").replaceAll(",", "\u202f"), className: "quiet" });
      label.append(box, swatch, name, count);
      item.append(label);
      list.append(item);
    });
    const fill = document.createElement("label");
    fill.textContent = "Opacity of areas";
    const range = Object.assign(document.createElement("input"), { type: "range", min: "0", max: "1", step: "0.05", value: String(this.overlay.opacity) });
    range.addEventListener("input", () => { this.overlay.opacity = Number(range.value); this.overlay.draw(); });
    fill.append(range);
    side.replaceChildren(title, list, fill);
    side.hidden = false;
  }
}

function niceBelow(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [5, 2, 1]) if (step * power <= value) return Number((step * power).toPrecision(3));
  return power;
}

customElements.define("mhs-viewer", Viewer);
