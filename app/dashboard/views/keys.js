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
  const [made, setMade] = useState(/** @type {any} */ (null));
  const make = async () => {
    setMade(await post("/v1/keys", { name, scope }));
    setName("");
    reload();
  };
  return html`<h1>API keys</h1>
    <div class="tiles">
      <div><label for="name">Who or what will use it</label><input id="name" value=${name} onInput=${(/** @type {any} */ e) => setName(e.target.value)} /></div>
      <div><label for="scope">It may</label><select id="scope" value=${scope} onChange=${(/** @type {any} */ e) => setScope(e.target.value)}>
        <option value="read">look</option><option value="write">submit and cancel, too</option><option value="admin">rule over keys and webhooks, too</option></select></div>
    </div>
    <${Action} kind="main" work=${make}>Make a key<//>
    ${made ? html`<div class="banner" role="status"><p>Keep it now, it is not shown again:</p><p class="mono">${made.secret}</p></div>` : null}
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="API keys" columns=${["name", "scope", "begins with", "last used", "state", ""]}
      rows=${data.data.map((/** @type {any} */ key) => [
        key.name, key.scope, html`<span class="mono">${key.hint}</span>`, key.last_used_at ? ago(key.last_used_at) : "never",
        key.revoked_at ? "revoked" : "good",
        key.revoked_at ? "" : html`<${Action} confirm=${`Revoke ${key.name}?`} work=${async () => { await remove(`/v1/keys/${key.id}`); reload(); }}>Revoke<//>`,
      ])} />` : null}`;
}
