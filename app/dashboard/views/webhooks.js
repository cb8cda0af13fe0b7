// @ts-check
/** Webhooks of the project and their deliveries, for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "../api.js";
import { Action, Fault, Table, useLoaded } from "../parts.js";
import { ago } from "../words.js";

export function Webhooks() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/webhooks?limit=100", signal), []);
  const [url, setUrl] = useState("");
  const [made, setMade] = useState(/** @type {any} */ (null));
  const [open, setOpen] = useState(/** @type {string | null} */ (null));
  const make = async () => {
    setMade(await post("/v1/webhooks", { url }));
    setUrl("");
    reload();
  };
  return html`<h1>Webhooks</h1>
    <div class="field" style="max-width: 30rem"><label for="url">Address that the ends of jobs are posted to</label>
      <input id="url" type="url" placeholder="https://" value=${url} onInput=${(/** @type {any} */ e) => setUrl(e.target.value)} /></div>
    <${Action} kind="main" work=${make}>Make a webhook<//>
    ${made ? html`<div class="banner" role="status"><p>Keep its secret now, it is not shown again:</p><p class="mono">${made.secret}</p></div>` : null}
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Webhooks" columns=${["address", "events", "state", ""]}
      rows=${data.data.map((/** @type {any} */ one) => [
        html`<span class="mono">${one.url}</span>`, one.events.join(", "), one.enabled ? "on" : one.disabled_reason,
        html`<span class="actions">
          <button type="button" aria-expanded=${open === one.id} onClick=${() => setOpen(open === one.id ? null : one.id)}>Deliveries</button>
          <${Action} work=${async () => { await post(`/v1/webhooks/${one.id}/test`); setOpen(one.id); }}>Send a trial<//>
          <${Action} confirm="Send nothing more there?" work=${async () => { await remove(`/v1/webhooks/${one.id}`); reload(); }}>Delete<//>
        </span>`,
      ])} />` : null}
    ${open ? html`<${Deliveries} key=${open} id=${open} />` : null}`;
}

/** @param {{ id: string }} props */
function Deliveries({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/webhooks/${id}/deliveries?limit=50`, signal), [id], 3);
  return html`<h2>Deliveries</h2>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Deliveries" columns=${["event", "state", "tries", "answer", "made", ""]}
      rows=${data.data.map((/** @type {any} */ one) => [
        one.type, one.state, one.attempts, one.last_status || one.last_error || "", ago(one.created_at),
        one.state === "pending" ? "" : html`<${Action} work=${async () => { await post(`/v1/webhooks/${id}/deliveries/${one.id}/redeliver`); reload(); }}>Send again<//>`,
      ])} />` : null}`;
}
