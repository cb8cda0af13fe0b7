// @ts-check
/** Webhooks of the project and their deliveries, for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "../api.js";
import { Action, Copy } from "../components/actions.js";
import { Card, Fault, Loading, Note, PageHead, State } from "../components/basics.js";
import { Table } from "../components/table.js";
import { ago } from "../format.js";
import { useLoaded } from "../hooks.js";
import { webhookEvent } from "../words.js";

/** @type {Record<string, string>} reasons for which the service disables a webhook */
const REASONS = { gone: "off: the receiver said that it is gone", failing: "off: too many deliveries failed" };

export function Webhooks() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/webhooks?limit=100", signal), []);
  const [url, setUrl] = useState("");
  const [created, setCreated] = useState(/** @type {any} */ (null));
  const [open, setOpen] = useState(/** @type {string | null} */ (null));
  const create = async () => {
    if (!url.trim()) throw new Error("Enter the URL that is to be notified.");
    setCreated(await post("/v1/webhooks", { url: url.trim() }));
    setUrl("");
    reload();
  };
  return html`<${PageHead} title="Webhooks" about="Signed notifications to your own services when jobs end." />
    <div class="stack">
      <${Card} title="New webhook">
        <div class="field"><label for="url">URL to notify when a job ends</label>
          <input id="url" type="url" placeholder="https://" value=${url} onInput=${(/** @type {any} */ e) => setUrl(e.target.value)} /></div>
        <${Action} kind="main" work=${create}>Create webhook<//>
        ${created ? html`<div class="secret"><${Note} kind="warn" role="status">Copy the secret now. It is not shown again: <span class="mono">${created.secret}</span> <${Copy} text=${created.secret} what="the secret" /><//></div>` : null}
      <//>
      <${Card} title="Webhooks of this project"><${Fault} error=${error} />
        ${data ? html`<${Table} label="Webhooks" empty="No webhooks yet." columns=${["URL", "Events", "State", ""]}
          rows=${data.data.map((/** @type {any} */ webhook) => [
            html`<span class="mono">${webhook.url}</span>`, webhook.events.map(webhookEvent).join(", "), webhook.enabled ? "on" : REASONS[webhook.disabled_reason] || "off",
            html`<span class="actions">
              <button type="button" class="small" aria-expanded=${open === webhook.id ? "true" : "false"} onClick=${() => setOpen(open === webhook.id ? null : webhook.id)}>Deliveries</button>
              <${Action} kind="small" work=${async () => { await post(`/v1/webhooks/${webhook.id}/test`); setOpen(webhook.id); }}>Send test<//>
              <${Action} kind="small danger" confirm="Delete this webhook?" work=${async () => { await remove(`/v1/webhooks/${webhook.id}`); reload(); }}>Delete<//>
            </span>`,
          ])} />` : error ? null : html`<${Loading} />`}
      <//>
      ${open ? html`<${Deliveries} key=${open} id=${open} />` : null}
    </div>`;
}

/** @param {{ id: string }} props */
function Deliveries({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/webhooks/${id}/deliveries?limit=50`, signal), [id], 3);
  return html`<${Card} title="Deliveries">
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Deliveries" empty="Nothing was delivered yet." columns=${["Event", "State", "Attempts\u00a0", "Response", "Created", ""]}
      rows=${data.data.map((/** @type {any} */ delivery) => [
        webhookEvent(delivery.type), html`<${State} state=${delivery.state} />`, delivery.attempts, delivery.last_status || delivery.last_error || "", ago(delivery.created_at),
        delivery.state === "pending" ? "" : html`<${Action} kind="small" work=${async () => { await post(`/v1/webhooks/${id}/deliveries/${delivery.id}/redeliver`); reload(); }}>Redeliver<//>`,
      ])} />` : html`<${Loading} />`}
  <//>`;
}
