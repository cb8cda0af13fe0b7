// @ts-check
/** API keys of the project, for administrators. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "../api.js";
import { Action, Copy } from "../components/actions.js";
import { Card, Fault, Loading, Note, PageHead } from "../components/basics.js";
import { Table } from "../components/table.js";
import { ago } from "../format.js";
import { useLoaded } from "../hooks.js";
import { capital } from "../words.js";

const SCOPES = [["read", "Read: view jobs and results"], ["write", "Write: submit and cancel jobs"], ["admin", "Admin: manage keys and webhooks"]];

export function Keys() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/keys?limit=100", signal), []);
  const [name, setName] = useState("");
  const [scope, setScope] = useState("write");
  const [created, setCreated] = useState(/** @type {any} */ (null));
  const create = async () => {
    if (!name.trim()) throw new Error("Enter a name for the key, so that it can be told from others.");
    setCreated(await post("/v1/keys", { name: name.trim(), scope }));
    setName("");
    reload();
  };
  return html`<${PageHead} title="API keys" about="Each program or person should have its own key, so that one can be revoked without the others." />
    <div class="stack">
      <${Card} title="New key">
        <div class="columns">
          <div class="field"><label for="name">Key name</label><input id="name" maxlength="100" value=${name} onInput=${(/** @type {any} */ e) => setName(e.target.value)} /></div>
          <div class="field"><label for="scope">Scope</label><select id="scope" value=${scope} onChange=${(/** @type {any} */ e) => setScope(e.target.value)}>
            ${SCOPES.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></div>
        </div>
        <${Action} kind="main" work=${create}>Create key<//>
        ${created ? html`<div class="secret"><${Note} kind="warn" role="status">Copy the key now. It is not shown again: <span class="mono">${created.secret}</span> <${Copy} text=${created.secret} what="the key" /><//></div>` : null}
      <//>
      <${Card} title="Keys"><${Fault} error=${error} />
        ${data ? html`<${Table} label="API keys" empty="No keys yet." columns=${["Name", "Scope", "Prefix", "Last used", "State", ""]}
          rows=${data.data.map((/** @type {any} */ key) => [
            key.name, capital(key.scope), html`<span class="mono">${key.hint}</span>`, key.last_used_at ? ago(key.last_used_at) : "never",
            key.revoked_at ? "revoked" : "active",
            key.revoked_at ? "" : html`<${Action} kind="small danger" label=${`Revoke ${key.name}`} confirm=${`Revoke ${key.name}?`} work=${async () => { await remove(`/v1/keys/${key.id}`); reload(); }}>Revoke<//>`,
          ])} />` : error ? null : html`<${Loading} />`}
      <//>
    </div>`;
}
