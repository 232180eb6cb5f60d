// <mhs-upload resumable>: files go straight from the browser to the blob store, in pieces where it takes pieces.

import { ask } from "./console.js";

const PIECE = 8 << 20;
const TRIES = 6;
const KEPT = "mhs-uploads"; // file → scan, so that an upload goes on after a reload; no URL is kept

class Upload extends HTMLElement {
  connectedCallback() {
    const zone = this.querySelector(".upload"), input = this.querySelector("input");
    const chosen = () => { this.take(input.files); input.value = ""; };
    input.addEventListener("change", chosen);
    if (input.files.length) chosen(); // before this script was there
    for (const name of ["dragover", "dragenter"]) zone.addEventListener(name, (e) => { e.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (e) => { e.preventDefault(); zone.classList.remove("over"); this.take(e.dataTransfer.files); });
  }
  take(files) {
    for (const file of files) this.send(file);
  }
  async send(file) {
    const row = new Row(this.querySelector(".uploads"), file);
    const name = `${file.name}/${file.size}/${file.lastModified}`;
    const kept = JSON.parse(localStorage.getItem(KEPT) || "{}");
    try {
      let begun = this.hasAttribute("resumable") && kept[name] ? await this.post("/console/scans/upload", { scan: kept[name] }, true) : null;
      begun ??= await this.post("/console/scans/upload", { filename: file.name });
      kept[name] = begun.id;
      localStorage.setItem(KEPT, JSON.stringify(kept));
      if (this.hasAttribute("resumable")) await this.pieces(begun.url, file, row);
      else await put(begun.url, file, {}, (sent) => row.show(sent));
      row.say("Opening the slide …");
      const done = await this.post(`/console/scans/${begun.id}/complete`, {});
      row.done(done.href);
    } catch (error) {
      row.fail(error.message);
      if (!error.keep) {
        delete kept[name];
        localStorage.setItem(KEPT, JSON.stringify(kept));
      }
    }
  }
  async post(url, fields, quiet = false) {
    const response = await ask(url, { method: "POST", body: new URLSearchParams(fields) });
    if (!response) throw Object.assign(new Error("the connection or the session is lost; choose the file again to go on"), { keep: true });
    const answer = await response.json().catch(() => ({ detail: `the platform answered ${response.status}` }));
    if (response.ok) return answer;
    if (quiet) return null;
    throw new Error(answer.detail);
  }
  async pieces(url, file, row) {
    let at = null, tries = 0;
    for (;;) {
      try {
        at ??= Number((await fetch(url, { method: "HEAD" })).headers.get("Upload-Offset") || 0);
        if (at > file.size) at = 0;
        const end = Math.min(at + PIECE, file.size);
        const begin = at;
        const status = await put(url, file.slice(at, end), { "Content-Range": `bytes ${at}-${end - 1}/${file.size}` }, (sent) => row.show(begin + sent));
        if (status === 409) { at = null; if (++tries > TRIES) throw new Error("the blob store does not take the pieces"); continue; }
        at = end;
        tries = 0;
        row.show(at);
        if (at === file.size) return;
      } catch (error) {
        if (error.final || ++tries > TRIES) throw Object.assign(error, { keep: !error.final });
        at = null;
        row.say("The connection is lost; trying again …");
        await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** tries));
      }
    }
  }
}

function put(url, body, headers, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () => {
      if (request.status < 300 || request.status === 409) resolve(request.status);
      else {
        const said = /<Message>([^<]*)/.exec(request.responseText)?.[1];
        reject(Object.assign(new Error(said || `the blob store answered ${request.status}`), { final: request.status < 500 || request.status === 507 }));
      }
    };
    request.onerror = () => reject(new Error("the connection to the blob store is lost; choose the file again to go on"));
    request.send(body);
  });
}

class Row {
  constructor(list, file) {
    this.size = file.size;
    this.item = document.createElement("li");
    this.name = Object.assign(document.createElement("b"), { textContent: file.name });
    this.bar = Object.assign(document.createElement("progress"), { max: file.size || 1, value: 0 });
    this.bar.setAttribute("aria-label", `Upload of ${file.name}`);
    this.text = Object.assign(document.createElement("span"), { className: "quiet small" });
    this.item.append(this.name, this.bar, this.text);
    list.append(this.item);
    this.began = performance.now();
  }
  show(sent) {
    this.bar.value = sent;
    const rate = sent / Math.max(0.1, (performance.now() - this.began) / 1000);
    this.text.textContent = `${size(sent)} of ${size(this.size)}, ${size(rate)}/s`;
  }
  say(text) { this.text.textContent = text; }
  done(href) {
    const link = Object.assign(document.createElement("a"), { href, textContent: "Open the scan" });
    this.bar.value = this.bar.max;
    this.text.replaceChildren("Ready. ", link);
  }
  fail(text) {
    this.bar.hidden = true;
    this.text.className = "fault";
    this.text.textContent = `${text[0].toUpperCase()}${text.slice(1)}.`;
  }
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < 3) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}

customElements.define("mhs-upload", Upload);
