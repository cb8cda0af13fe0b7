// @ts-check
/** Keyboard shortcuts, and the sheet that lists them. */

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";

const STORED = "intraslice-shortcuts";
/** @type {[string, string, string | null][]} key, what it does, the view that it opens */
const KEYS = [
  ["/", "Search jobs", null], ["n", "New job", "#/new"], ["j", "Jobs", "#/jobs"], ["s", "Sweeps", "#/sweeps"],
  ["m", "Models", "#/models"], ["d", "Datasets", "#/datasets"], ["?", "This list", null],
];

/** @param {any} target */
const takesText = (target) => target instanceof HTMLElement && (target.isContentEditable || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName));

/** The sheet, opened by the key and by the event `shortcuts` of the window. */
export function Shortcuts() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [on, setOn] = useState(localStorage.getItem(STORED) !== "off");
  useEffect(() => {
    const open = () => dialog.current?.showModal();
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (!on || event.ctrlKey || event.metaKey || event.altKey || takesText(event.target) || dialog.current?.open) return;
      const shortcut = KEYS.find(([name]) => name === event.key);
      if (!shortcut) return;
      const [key, , view] = shortcut;
      event.preventDefault();
      if (view) location.hash = view;
      else if (key === "?") open();
      else search();
    };
    window.addEventListener("keydown", press);
    window.addEventListener("shortcuts", open);
    return () => {
      window.removeEventListener("keydown", press);
      window.removeEventListener("shortcuts", open);
    };
  }, [on]);
  const toggle = () => {
    localStorage.setItem(STORED, on ? "off" : "on");
    setOn(!on);
  };
  return html`<dialog class="card" ref=${dialog} aria-labelledby="shortcuts-title"><div class="body stack">
    <h2 id="shortcuts-title">Keyboard shortcuts</h2>
    <dl class="facts">${KEYS.map(([key, name]) => html`<dt><kbd>${key}</kbd></dt><dd>${name}</dd>`)}</dl>
    <label class="check small"><input type="checkbox" checked=${on} onChange=${toggle} />Use these shortcuts</label>
    <form method="dialog"><button>Close</button></form>
  </div></dialog>`;
}

/** Go to the search field of the jobs. */
function search() {
  const field = document.getElementById("search");
  if (field) return field.focus();
  location.hash = "#/jobs";
}
