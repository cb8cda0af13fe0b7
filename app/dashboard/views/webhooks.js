// @ts-check
/** Webhooks of the project and their deliveries, for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "../api.js";
import { Action, Fault, Table, useLoaded } from "../parts.js";
import { ago } from "../words.js";

export function Webhooks() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/webhooks?limit=100", signal), []);
  const [url, setUrl] = useState("");
  const [created, setCreated] = useState(/** @type {any} */ (null));
  const [open, setOpen] = useState(/** @type {string | null} */ (null));
  const create = async () => {
    setCreated(await post("/v1/webhooks", { url }));
    setUrl("");
    reload();
  };
  return html`<h1>Webhooks</h1>
    <div class="field" style="max-width: 30rem"><label for="url">URL to notify when a job ends</label>
      <input id="url" type="url" placeholder="https://" value=${url} onInput=${(/** @type {any} */ e) => setUrl(e.target.value)} /></div>
    <${Action} kind="main" work=${create}>Create webhook<//>
    ${created ? html`<div class="banner" role="status"><p>Copy the secret now. It is not shown again:</p><p class="mono">${created.secret}</p></div>` : null}
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Webhooks" columns=${["URL", "events", "state", ""]}
      rows=${data.data.map((/** @type {any} */ webhook) => [
        html`<span class="mono">${webhook.url}</span>`, webhook.events.join(", "), webhook.enabled ? "on" : webhook.disabled_reason,
        html`<span class="actions">
          <button type="button" aria-expanded=${open === webhook.id} onClick=${() => setOpen(open === webhook.id ? null : webhook.id)}>Deliveries</button>
          <${Action} work=${async () => { await post(`/v1/webhooks/${webhook.id}/test`); setOpen(webhook.id); }}>Send test<//>
          <${Action} confirm="Delete this webhook?" work=${async () => { await remove(`/v1/webhooks/${webhook.id}`); reload(); }}>Delete<//>
        </span>`,
      ])} />` : null}
    ${open ? html`<${Deliveries} key=${open} id=${open} />` : null}`;
}

/** @param {{ id: string }} props */
function Deliveries({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/webhooks/${id}/deliveries?limit=50`, signal), [id], 3);
  return html`<h2>Deliveries</h2>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Deliveries" columns=${["event", "state", "attempts", "response", "created", ""]}
      rows=${data.data.map((/** @type {any} */ delivery) => [
        delivery.type, delivery.state, delivery.attempts, delivery.last_status || delivery.last_error || "", ago(delivery.created_at),
        delivery.state === "pending" ? "" : html`<${Action} work=${async () => { await post(`/v1/webhooks/${id}/deliveries/${delivery.id}/redeliver`); reload(); }}>Redeliver<//>`,
      ])} />` : null}`;
}
