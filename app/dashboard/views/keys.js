// @ts-check
/** API keys of the project, for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "../api.js";
import { Action, Fault, Table, useLoaded } from "../parts.js";
import { ago } from "../words.js";

export function Keys() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/keys?limit=100", signal), []);
  const [name, setName] = useState("");
  const [scope, setScope] = useState("write");
  const [created, setCreated] = useState(/** @type {any} */ (null));
  const create = async () => {
    setCreated(await post("/v1/keys", { name, scope }));
    setName("");
    reload();
  };
  return html`<h1>API keys</h1>
    <div class="tiles">
      <div><label for="name">Key name</label><input id="name" value=${name} onInput=${(/** @type {any} */ e) => setName(e.target.value)} /></div>
      <div><label for="scope">Scope</label><select id="scope" value=${scope} onChange=${(/** @type {any} */ e) => setScope(e.target.value)}>
        <option value="read">Read: view jobs and results</option><option value="write">Write: submit and cancel jobs</option><option value="admin">Admin: manage keys and webhooks</option></select></div>
    </div>
    <${Action} kind="main" work=${create}>Create key<//>
    ${created ? html`<div class="banner" role="status"><p>Copy the key now. It is not shown again:</p><p class="mono">${created.secret}</p></div>` : null}
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="API keys" columns=${["name", "scope", "prefix", "last used", "state", ""]}
      rows=${data.data.map((/** @type {any} */ key) => [
        key.name, key.scope, html`<span class="mono">${key.hint}</span>`, key.last_used_at ? ago(key.last_used_at) : "never",
        key.revoked_at ? "revoked" : "active",
        key.revoked_at ? "" : html`<${Action} confirm=${`Revoke ${key.name}?`} work=${async () => { await remove(`/v1/keys/${key.id}`); reload(); }}>Revoke<//>`,
      ])} />` : null}`;
}
