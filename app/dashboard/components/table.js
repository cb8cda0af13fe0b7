// @ts-check
/** Tables: scrolling in their own box, lists on narrow screens. */

import { html } from "../vendor/htm-preact.js";

/**
 * A table that scrolls in its own box. On narrow screens it becomes a list that keeps the roles of a table and names
 * the column in each cell. Columns whose name ends with a no-break space hold numbers.
 * @param {{ label: string, columns: string[], rows: any[][], empty?: string }} props
 */
export function Table({ label, columns, rows, empty }) {
  if (!rows.length) return html`<p class="sub">${empty || "Nothing yet."}</p>`;
  const isNumber = columns.map((name) => name.endsWith("\u00a0"));
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
    <table class="listed" role="table">
      <thead role="rowgroup">
        <tr role="row">
          ${columns.map((name, at) => html`<th role="columnheader" scope="col" class=${isNumber[at] ? "number" : ""}>${name || html`<span class="hidden">Actions</span>`}</th>`)}
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
