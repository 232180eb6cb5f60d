// <mhs-log job attempt lines live>: shows any part of a log of any length; only the lines in view are in the page, and
// only pieces near them are kept. New lines come as server-sent events.

import { ask, disconnected, connected } from "./console.js";

const ROW = 18;             // pixels, as .log-line has it
const MAX_HEIGHT = 8e6;     // browsers stop at some 17 to 33 million pixels; beyond this the scroll bar is scaled
const PIECE = 500;
const KEPT_PIECES = 240;
const OVERSCAN = 12;

class Log extends HTMLElement {
  connectedCallback() {
    this.view = this.querySelector(".log-view");
    this.space = this.querySelector(".log-space");
    this.lines = this.querySelector(".log-lines");
    this.attempt = Number(this.getAttribute("attempt"));
    this.total = Number(this.getAttribute("lines"));
    this.pieces = new Map();
    this.asked = new Set();
    this.hits = [];
    this.hit = -1;
    this.following = this.hasAttribute("live");
    this.view.addEventListener("scroll", () => this.scrolled(), { passive: true });
    for (const name of ["wheel", "keydown", "pointerdown"]) {
      this.view.addEventListener(name, (e) => { if (e.deltaY < 0 || ["ArrowUp", "PageUp", "Home"].includes(e.key)) this.follow(false); }, { passive: true });
    }
    new ResizeObserver(() => this.later()).observe(this.view);
    this.addEventListener("click", (event) => this.press(event.target.closest("[data-log]")));
    const box = this.querySelector("input[type=search]");
    box.addEventListener("keydown", (e) => { if (e.key === "Enter") { e.preventDefault(); this.search(box.value, e.shiftKey ? -1 : 1); } });
    box.addEventListener("search", () => { if (!box.value) this.search(""); });
    box.addEventListener("change", () => { if (box.value !== this.text) this.search(box.value); });
    addEventListener("hashchange", () => this.hash());
    this.size();
    if (!this.hash() && this.following) this.bottom();
    this.follow(this.following);
    this.later();
    if (this.hasAttribute("live")) this.listen();
  }
  disconnectedCallback() { this.source?.close(); }

  // ---- live

  listen() {
    const source = new EventSource(`/console/jobs/${this.getAttribute("job")}/log/stream?offset=${this.total}`);
    this.source = source;
    source.onopen = () => connected();
    source.onmessage = (event) => {
      const line = JSON.parse(event.data);
      if (line.attempt !== this.attempt) this.restart(line.attempt);
      if (line.line < this.total) return;
      const at = Math.floor(line.line / PIECE);
      const piece = this.pieces.get(at);
      if (piece && piece.length === line.line % PIECE) piece.push([line.at, line.source[0], line.text]);
      else if (!piece && line.line % PIECE === 0) this.pieces.set(at, [[line.at, line.source[0], line.text]]);
      this.total = line.line + 1;
      this.grown();
    };
    source.addEventListener("end", () => {
      source.close();
      this.removeAttribute("live");
      this.follow(false);
      this.later();
    });
    source.onerror = () => { if (source.readyState === EventSource.CONNECTING) disconnected(); };
  }
  restart(attempt) {
    this.attempt = attempt;
    this.total = 0;
    this.pieces.clear();
    this.asked.clear();
    this.hits = [];
  }
  grown() {
    if (this.growing) return;
    this.growing = true;
    requestAnimationFrame(() => {
      this.growing = false;
      this.size();
      if (this.following) this.bottom();
      this.draw();
    });
  }

  // ---- geometry: lines are counted, not measured; a scroll position is a share of all lines

  get rows() { return Math.max(1, this.view.clientHeight / ROW); }
  size() {
    this.height = Math.min(MAX_HEIGHT, Math.max(1, this.total) * ROW);
    this.space.style.height = `${this.height}px`;
  }
  get first() {
    const room = this.height - this.view.clientHeight;
    if (room <= 0) return 0;
    return Math.min(1, this.view.scrollTop / room) * Math.max(0, this.total - this.rows);
  }
  go(line) {
    const room = this.height - this.view.clientHeight;
    const last = Math.max(1, this.total - this.rows);
    this.view.scrollTop = Math.max(0, Math.min(1, (line - this.rows / 3) / last)) * Math.max(0, room);
    this.later();
  }
  bottom() { this.view.scrollTop = this.height; }
  get atBottom() { return this.height - this.view.clientHeight - this.view.scrollTop < 2 * ROW; }
  scrolled() {
    if (this.hasAttribute("live") && !this.following && this.atBottom) this.follow(true);
    else if (this.following && !this.atBottom && !this.growing) this.follow(false);
    this.later();
  }
  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  // ---- lines

  draw() {
    const first = this.first, from = Math.max(0, Math.floor(first) - OVERSCAN);
    const to = Math.min(this.total, Math.ceil(first + this.rows) + OVERSCAN);
    const part = document.createDocumentFragment();
    let anchor = null;
    for (let n = from; n < to; n++) {
      const element = this.line(n);
      if (n === Math.floor(first)) anchor = element;
      part.append(element);
    }
    this.lines.replaceChildren(part);
    const above = anchor ? anchor.offsetTop : 0;
    let y = this.view.scrollTop - above - (first - Math.floor(first)) * ROW;
    if (to === this.total && this.atBottom && this.height > this.view.clientHeight) {
      y = this.height - this.lines.offsetHeight; // wrapped lines are taller than counted: the end is what shows at the end
    }
    this.lines.style.transform = `translateY(${from === 0 && first === 0 ? 0 : y}px)`;
    this.need(from, to);
    this.status();
  }
  line(n) {
    const piece = this.pieces.get(Math.floor(n / PIECE));
    const found = piece?.[n % PIECE];
    const element = document.createElement("div");
    element.className = `log-line${found ? ` ${found[1] === "s" ? "o" : found[1]}` : ""}${this.marked?.has(n) ? " hit" : ""}${n === this.here ? " here" : ""}`;
    const number = Object.assign(document.createElement("a"), { className: "n", textContent: String(n + 1), href: `#L${n + 1}`, tabIndex: -1 });
    const at = Object.assign(document.createElement("span"), { className: "at", textContent: found ? found[0].slice(11, 23) : "" });
    const text = Object.assign(document.createElement("span"), { className: "text" });
    if (!found) text.textContent = "…";
    else if (this.marked?.has(n)) highlight(text, found[2], this.text);
    else text.textContent = found[1] === "p" ? `[mhs] ${found[2]}` : found[2];
    if (found) at.title = found[0];
    element.append(number, at, text);
    return element;
  }
  need(from, to) {
    if (this.total === 0) return;
    for (let p = Math.floor(from / PIECE); p <= Math.floor(Math.max(from, to - 1) / PIECE); p++) {
      const piece = this.pieces.get(p);
      const length = Math.min(PIECE, this.total - p * PIECE);
      if ((!piece || piece.length < length) && !this.asked.has(p)) this.fetch(p);
    }
  }
  async fetch(p) {
    this.asked.add(p);
    try {
      const response = await ask(`/console/jobs/${this.getAttribute("job")}/log/lines?start=${p * PIECE}&count=${PIECE}${this.attempt ? `&attempt=${this.attempt}` : ""}`);
      if (response?.ok) {
        const answer = await response.json();
        if (answer.attempt === this.attempt && (this.pieces.get(p)?.length || 0) < answer.lines.length) this.pieces.set(p, answer.lines);
      } else await new Promise((resolve) => setTimeout(resolve, 2000));
    } finally {
      this.asked.delete(p);
    }
    if (this.pieces.size > KEPT_PIECES) {
      const middle = Math.floor(this.first / PIECE);
      const far = [...this.pieces.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
      for (const key of far.slice(0, this.pieces.size - KEPT_PIECES)) this.pieces.delete(key);
    }
    this.later();
  }
  status() {
    const live = this.hasAttribute("live");
    const count = this.total.toLocaleString("en").replaceAll(",", "\u202f");
    this.querySelector("[data-log-status]").textContent = this.total
      ? `${count} line${this.total === 1 ? "" : "s"}${live ? ", more may come" : ""}`
      : live ? "Nothing was written yet." : "The log is empty.";
  }

  // ---- what people press

  press(button) {
    if (!button) return;
    const toggle = (name) => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      return on;
    };
    switch (button.dataset.log) {
      case "follow":
        this.follow(!this.following);
        if (this.following) this.bottom();
        break;
      case "wrap": this.view.classList.toggle("wrap", toggle()); break;
      case "times": this.view.classList.toggle("no-times", !toggle()); break;
      case "next": this.step(1); break;
      case "previous": this.step(-1); break;
    }
    this.later();
  }
  follow(on) {
    this.following = on;
    const button = this.querySelector('[data-log="follow"]');
    button.setAttribute("aria-pressed", String(on));
    button.hidden = !this.hasAttribute("live");
  }
  hash() {
    const wanted = /^#L(\d+)$/.exec(location.hash);
    if (!wanted) return false;
    this.here = Math.min(this.total, Number(wanted[1])) - 1;
    this.follow(false);
    this.following = false;
    this.go(this.here);
    return true;
  }

  // ---- search: on the server, over the whole log

  async search(text, direction = 1) {
    if (text && text === this.text && this.hits.length) {
      this.step(direction);
      return;
    }
    this.text = text;
    this.hits = [];
    this.marked = null;
    this.hit = -1;
    const said = this.querySelector("[data-log-hits]");
    if (text) {
      said.textContent = "Searching …";
      const response = await ask(`/console/jobs/${this.getAttribute("job")}/log/search?q=${encodeURIComponent(text)}${this.attempt ? `&attempt=${this.attempt}` : ""}`);
      if (!response?.ok || this.text !== text) { said.textContent = ""; return; }
      const answer = await response.json();
      this.hits = answer.lines;
      this.more = answer.more;
      this.marked = new Set(this.hits);
    }
    for (const name of ["next", "previous"]) this.querySelector(`[data-log="${name}"]`).disabled = !this.hits.length;
    said.textContent = text && !this.hits.length ? "Not found" : "";
    if (this.hits.length) this.step(1);
    this.later();
  }
  step(direction) {
    if (!this.hits.length) return;
    this.hit = (this.hit + direction + this.hits.length) % this.hits.length;
    this.here = this.hits[this.hit];
    this.follow(false);
    this.querySelector("[data-log-hits]").textContent = `${this.hit + 1} of ${this.hits.length}${this.more ? "+" : ""}`;
    this.go(this.here);
  }
}

function highlight(element, text, wanted) {
  const lower = text.toLowerCase(), find = wanted.toLowerCase();
  let at = 0;
  for (let found = lower.indexOf(find); found >= 0 && lower.length === text.length; found = lower.indexOf(find, at)) {
    element.append(text.slice(at, found));
    element.append(Object.assign(document.createElement("mark"), { textContent: text.slice(found, found + find.length) }));
    at = found + find.length;
  }
  element.append(text.slice(at));
}

customElements.define("mhs-log", Log);
