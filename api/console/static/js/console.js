// What every page has: dialogs, copying, countdowns, polling, the banner for a lost connection or session, theme, time zone.

const cookie = (name, value) => {
  document.cookie = `${name}=${encodeURIComponent(value)}; path=/console; max-age=31536000; samesite=strict`;
};
cookie("mhs_tz", Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC");

// ---- banner

const banner = () => document.getElementById("banner");
export function tell(text, kind = "warn", link = null) {
  const element = banner();
  if (!element) return;
  element.className = `notice ${kind}`;
  element.replaceChildren(text);
  if (link) {
    const a = document.createElement("a");
    a.href = link.href;
    a.textContent = link.text;
    element.append(" ", a);
  }
  element.hidden = false;
}
let lost = false;
export function connected() {
  if (lost) {
    lost = false;
    tell("Connected again.", "good");
    setTimeout(() => { if (!lost) banner().hidden = true; }, 2500);
  }
}
export function disconnected() {
  lost = true;
  tell("The connection is lost. This page tries again by itself.", "bad");
}
export function sessionEnded(where) {
  const here = encodeURIComponent(location.pathname + location.search);
  tell("Your session has ended.", "warn", { href: where || `/console/sign-in?next=${here}`, text: "Sign in again" });
}

export const formKey = () => document.querySelector('meta[name="form-key"]')?.content || "";

/** fetch() of our own routes: adds the form key, tells of a lost connection or session. Resolves to null then. */
export async function ask(url, options = {}) {
  let response;
  try {
    response = await fetch(url, {
      ...options,
      headers: { "X-Form-Key": formKey(), ...(options.headers || {}) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    disconnected();
    return null;
  }
  connected();
  if (response.status === 401) {
    sessionEnded(`/console/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    return null;
  }
  return response;
}

document.addEventListener("htmx:error", () => disconnected());
document.addEventListener("htmx:after:request", (event) => {
  const response = event.detail?.ctx?.response;
  if (!response) return;
  connected();
  if (response.status === 401) sessionEnded(`/console/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  else if (response.status >= 500) tell("The platform could not answer. This page tries again by itself.", "bad");
});
window.addEventListener("offline", disconnected);
window.addEventListener("online", connected);

// ---- polling: elements with data-poll (seconds) ask for themselves while the page is seen and nothing in them is chosen

setInterval(() => {
  if (document.hidden) return;
  const now = Date.now();
  for (const element of document.querySelectorAll("[data-poll]")) {
    const every = 1000 * Number(element.dataset.poll) * (lost ? 2 : 1);
    element.polledAt ??= now;
    if (now - element.polledAt < every) continue;
    if (element.dataset.pollMax && element.querySelectorAll("tbody tr").length > Number(element.dataset.pollMax)) continue; // older ones were asked for
    if (element.querySelector("input[type=checkbox]:checked, dialog[open]") || element.contains(document.activeElement?.closest("input, select"))) continue;
    element.polledAt = now;
    element.dispatchEvent(new CustomEvent("poll"));
  }
}, 250);

// ---- dialogs: <button data-dialog="id">

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.dialog);
    dialog.opener = opener;
    dialog.showModal();
    return;
  }
  const closer = event.target.closest("[data-close]");
  if (closer) {
    event.preventDefault();
    closer.closest("dialog").close();
    return;
  }
  const copier = event.target.closest("[data-copy]");
  if (copier) copy(copier);
  const adder = event.target.closest("[data-add-row]");
  if (adder) addRow(adder);
  const remover = event.target.closest("[data-remove-row]");
  if (remover) removeRow(remover);
  const theme = event.target.closest("[data-theme-toggle]");
  if (theme) {
    const dark = document.documentElement.dataset.theme === "dark"
      || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    cookie("mhs_theme", dark ? "light" : "dark");
  }
});
document.addEventListener("click", (event) => {
  if (event.target.tagName === "DIALOG" && !event.target.querySelector("[data-keep]")) event.target.close();
});
for (const dialog of document.querySelectorAll("dialog[data-open]")) dialog.showModal();

async function copy(button) {
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea"); // plain http has no clipboard API
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}

// ---- rows of environment variables

function addRow(button) {
  const template = document.getElementById(button.dataset.addRow);
  const rows = document.getElementById(button.dataset.rows);
  const row = template.content.firstElementChild.cloneNode(true);
  const index = Number(rows.dataset.next || rows.children.length);
  rows.dataset.next = index + 1;
  for (const element of row.querySelectorAll("[name], [id], [for], [aria-label]")) {
    for (const name of ["name", "id", "for", "aria-label"]) {
      const value = element.getAttribute(name);
      if (value) element.setAttribute(name, value.replaceAll("__i__", index).replaceAll("__n__", index + 1));
    }
  }
  rows.append(row);
  row.querySelector("input").focus();
}
function removeRow(button) {
  const row = button.closest(".env-row");
  const next = row.nextElementSibling?.querySelector("input") || document.querySelector("[data-add-row]");
  row.remove();
  next?.focus();
}
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-secret]")) {
    const value = event.target.closest(".env-row").querySelector("[data-value]");
    value.type = event.target.checked ? "password" : "text";
  }
  if (event.target.matches("[data-all]")) {
    for (const box of document.querySelectorAll(`input[name="${event.target.dataset.all}"]`)) box.checked = event.target.checked;
  }
  if (event.target.matches('input[name="job"], [data-all]')) chosen();
  const shower = event.target.closest("[data-shows]");
  if (shower) showFor(shower);
});
export function chosen() {
  const count = document.querySelectorAll('input[name="job"]:checked').length;
  for (const element of document.querySelectorAll("[data-chosen]")) element.textContent = String(count);
  for (const element of document.querySelectorAll("[data-needs-chosen]")) element.disabled = count === 0;
}
document.addEventListener("htmx:after:swap", chosen);

// ---- <select data-shows="id" data-when="value">: a part of the form that belongs to one value only

function showFor(select) {
  const part = document.getElementById(select.dataset.shows);
  part.hidden = select.value !== select.dataset.when;
  for (const input of part.querySelectorAll("input, select")) input.disabled = part.hidden;
}
for (const select of document.querySelectorAll("[data-shows]")) showFor(select);

// ---- forms that were cut off by the end of a session come back filled in

const KEPT = "mhs-kept-form";
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) {
    event.preventDefault();
    return;
  }
  if (form.method !== "post" || form.dataset.forget !== undefined || form.closest("[data-forget]")) return;
  const fields = [...new FormData(form)].filter(([name]) => name !== "form_key" && !form.querySelector(`[name="${CSS.escape(name)}"][type="password"]`));
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ at: location.pathname, action: form.getAttribute("action"), fields }));
  } catch { /* a full or forbidden storage only costs the convenience */ }
});
(() => {
  const asked = new URLSearchParams(location.search).has("resumed");
  const kept = sessionStorage.getItem(KEPT);
  if (location.pathname === "/console/sign-in") return;
  if (asked && kept) {
    const { at, action, fields } = JSON.parse(kept);
    const form = at === location.pathname && [...document.forms].find((f) => f.getAttribute("action") === action);
    if (form) {
      const seen = new Map();
      for (const [name, value] of fields) {
        const inputs = form.querySelectorAll(`[name="${CSS.escape(name)}"]`);
        const nth = seen.get(name) || 0;
        seen.set(name, nth + 1);
        const radio = [...inputs].find((i) => (i.type === "radio" || i.type === "checkbox") && i.value === value);
        if (radio) radio.checked = true;
        else if (inputs[nth]) inputs[nth].value = value;
      }
      form.closest("dialog")?.showModal();
      tell("You are signed in again. What you had typed is still here; send it once more.", "good");
    }
  }
  if (asked) {
    const url = new URL(location.href);
    url.searchParams.delete("resumed");
    history.replaceState(null, "", url);
  }
  sessionStorage.removeItem(KEPT);
})();

// A notice that came with a redirect is shown once, not again on reload.
if (new URLSearchParams(location.search).has("notice")) {
  const url = new URL(location.href);
  url.searchParams.delete("notice");
  history.replaceState(null, "", url);
}

// ---- <mhs-countdown until="ISO time">

class Countdown extends HTMLElement {
  connectedCallback() {
    const until = Date.parse(this.getAttribute("until"));
    const show = () => {
      const left = Math.max(0, Math.floor((until - Date.now()) / 1000));
      const [h, m, s] = [Math.floor(left / 3600), Math.floor(left / 60) % 60, left % 60];
      this.textContent = left ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : "expired; close and open this again";
    };
    show();
    this.timer = setInterval(show, 1000);
  }
  disconnectedCallback() { clearInterval(this.timer); }
}
customElements.define("mhs-countdown", Countdown);
