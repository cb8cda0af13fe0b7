// @ts-check
/** Audit log: what was changed, or tried, and by which key; for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Card, Fault, Loading, Moment, PageHead } from "../components/basics.js";
import { Table } from "../components/table.js";
import { useLoaded } from "../hooks.js";
import { callName, outcomeName } from "../words.js";

const PAGE = 50;

export function Audit() {
  const [pages, setPages] = useState(/** @type {string[]} */ ([]));
  const after = pages.length ? `&after=${encodeURIComponent(pages[pages.length - 1])}` : "";
  const { data, error } = useLoaded((signal) => get(`/v1/audit?limit=${PAGE}${after}`, signal), [after]);
  const keys = useLoaded((signal) => get("/v1/keys?limit=100", signal), []).data?.data || [];
  const keyName = (/** @type {string | null} */ id) => (id === null ? "operator" : keys.find((/** @type {any} */ key) => key.id === id)?.name || id);
  return html`<${PageHead} title="Audit log" about="Calls that changed something or were rejected, newest first. Bodies are not stored." />
    <${Card}><${Fault} error=${error} />
      ${data ? html`<${Table} label="Audit log" empty="Nothing has been changed yet." columns=${["Time", "Key", "Action", "Object", "Outcome", "Request"]}
        rows=${data.data.map((/** @type {any} */ entry) => [
          html`<${Moment} moment=${entry.created_at} text=${new Date(entry.created_at).toLocaleString()} />`,
          keyName(entry.key),
          html`<span title=${`${entry.method} ${entry.route}`}>${callName(entry)}</span>`,
          object(entry.object_id),
          html`<span class=${entry.status >= 400 ? "fault" : ""} title=${`HTTP ${entry.status}`}>${outcomeName(entry.status)}</span>`,
          html`<span class="mono digest" title=${entry.request_id}>${entry.request_id}</span>`,
        ])} />` : error ? null : html`<${Loading} what="the audit log" />`}
      <div class="actions pages">
        ${pages.length ? html`<button type="button" onClick=${() => setPages(pages.slice(0, -1))}>Newer</button>` : null}
        ${data?.has_more ? html`<button type="button" onClick=${() => setPages([...pages, data.next_cursor])}>Older</button>` : null}
      </div>
    <//>`;
}

/** @param {string | null} id */
function object(id) {
  if (!id) return "";
  const view = id.startsWith("job_") ? "jobs" : id.startsWith("sweep_") ? "sweeps" : null;
  return view ? html`<a class="mono" href=${`#/${view}/${id}`}>${id}</a>` : html`<span class="mono">${id}</span>`;
}
