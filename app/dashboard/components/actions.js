// @ts-check
/** Buttons that do something, and say if it failed. */

import { html, useState } from "../vendor/htm-preact.js";
import { reportToShell } from "../hooks.js";
import { Fault } from "./basics.js";

/**
 * A button that shows the error of its action.
 * @param {{ work: () => Promise<any>, children?: any, kind?: string, confirm?: string, label?: string, disabled?: boolean }} props
 */
export function Action({ work, children, kind = "", confirm, label, disabled }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  const press = async () => {
    if (confirm && !window.confirm(confirm)) return;
    setBusy(true);
    setError(null);
    try {
      await work();
    } catch (failure) {
      setError(failure);
      reportToShell(failure);
    }
    setBusy(false);
  };
  return html`<span class="action">
    <button type="button" class=${kind} disabled=${busy || disabled} aria-label=${label} onClick=${press}>${children}</button>
    <${Fault} error=${error} />
  </span>`;
}

/** @param {{ text: string | (() => string | Promise<string>), what?: string, children?: any }} props `what` names the text for screen readers */
export function Copy({ text, what, children }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await copyText(typeof text === "function" ? await text() : text);
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return html`<${Action} kind="small" work=${copy} label=${what ? `Copy ${what}` : undefined}>${copied ? "Copied" : children || "Copy"}<//>`;
}

/** Copy by the clipboard's API; on pages without TLS by a selection. @param {string} text */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("The browser does not let this page copy. Select the text instead.");
}

/** Let the browser save a text as a file. @param {string} name @param {string} text @param {string} [type] */
export function save(name, text, type = "text/plain") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A table as CSV. @param {string[]} columns @param {any[][]} rows */
export function csv(columns, rows) {
  const quoted = (/** @type {any} */ value) => {
    const text = value === null || value === undefined ? "" : String(value);
    // A leading =, +, - or @ would be a formula in a spreadsheet, unless it is a number.
    const safe = /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n");
}
