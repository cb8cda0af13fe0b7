// @ts-check
/** Components shared by several views. */

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ApiError, Unavailable } from "./api.js";

/** @param {{ state: string }} props */
export const State = ({ state }) => html`<span class=${`state ${state}`}>${state}</span>`;

/** @param {{ pairs: [string, any][] }} props */
export const Facts = ({ pairs }) => html`<dl class="facts">
  ${pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}
</dl>`;

/** @param {{ name: string, value: any, note?: any }} props */
export const Tile = ({ name, value, note }) => html`<div class="tile">
  ${name}<b>${value}</b>${note ? html`<span class="quiet small">${note}</span>` : null}
</div>`;

/**
 * A table that scrolls in its own box. On narrow screens it becomes a list that keeps the roles of a table and names
 * the column in each cell. Columns whose name ends with a no-break space hold numbers.
 * @param {{ label: string, columns: string[], rows: any[][], empty?: string }} props
 */
export function Table({ label, columns, rows, empty }) {
  if (!rows.length) return html`<p class="quiet">${empty || "Nothing yet."}</p>`;
  const isNumber = columns.map((name) => name.endsWith("\u00a0"));
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
    <table class="listed" role="table">
      <thead role="rowgroup">
        <tr role="row">
          ${columns.map((name, at) => html`<th role="columnheader" scope="col" class=${isNumber[at] ? "number" : ""}>${name}</th>`)}
        </tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map(
          (row) => html`<tr role="row">
            ${row.map((cell, at) => html`<td role="cell" data-column=${columns[at].trim()} class=${`${isNumber[at] ? "number" : ""} ${cell === "" ? "void" : ""}`}><div>${cell}</div></td>`)}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** @param {{ error: any }} props */
export function Fault({ error }) {
  if (!error) return null;
  const fields = Object.entries(error.fields || {});
  return html`<div class="fault" role="alert">
    <p>${error.message}</p>
    ${fields.length ? html`<ul>${fields.map(([place, text]) => html`<li><span class="mono">${place}</span> ${text}</li>`)}</ul>` : null}
  </div>`;
}

/** Set the window title while the component is mounted; views override the shell. @param {string} title */
export function useTitle(title) {
  useEffect(() => {
    document.title = `${title} · IntraSlice`;
  }, [title]);
}

/**
 * Load data, repeatedly if `seconds` is set; report an unavailable service to the shell.
 * @param {(signal: AbortSignal) => Promise<any>} load
 * @param {any[]} depends
 * @param {number} seconds between loads; 0 loads once
 */
export function useLoaded(load, depends, seconds = 0) {
  const [loaded, setLoaded] = useState(/** @type {any} */ ({ data: null, error: null }));
  const latest = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const step = async () => {
      clearTimeout(timer);
      try {
        const data = await load(stop.signal);
        if (!stop.signal.aborted) setLoaded({ data, error: null });
        reportToShell(null);
      } catch (error) {
        if (stop.signal.aborted) return;
        reportToShell(error);
        if (!(error instanceof Unavailable)) setLoaded((/** @type {any} */ old) => ({ ...old, error }));
        if (error instanceof Unavailable && !seconds) timer = setTimeout(step, 3000);
      }
      if (seconds && !stop.signal.aborted) timer = setTimeout(step, seconds * 1000);
    };
    latest.current = step;
    step();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, depends);
  return { ...loaded, reload: () => latest.current() };
}

/** @type {(error: any) => void} */
let listener = () => {};

/** @param {(error: any) => void} handler */
export function onFault(handler) {
  listener = handler;
}

/** Let the shell show that the service is unavailable, or ask for a key. @param {any} error */
export function reportToShell(error) {
  if (error === null || error instanceof Unavailable) listener(error);
  else if (error instanceof ApiError && error.status === 401) listener(error);
}

/**
 * A button that shows the error of its action.
 * @param {{ work: () => Promise<any>, children?: any, kind?: string, confirm?: string }} props
 */
export function Action({ work, children, kind = "", confirm }) {
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
  return html`<span>
    <button type="button" class=${kind} disabled=${busy} onClick=${press}>${children}</button>
    <${Fault} error=${error} />
  </span>`;
}
