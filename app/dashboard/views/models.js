// @ts-check
/** Models that can be compressed here, and those that were. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Card, Delta, Fault, Loading, Moment, PageHead, Tag } from "../components/basics.js";
import { Browse } from "../components/paths.js";
import { Table } from "../components/table.js";
import { ago, bytes, change, count, perplexity, share, times } from "../format.js";
import { methodTitle, useLoaded, useUploadNames } from "../hooks.js";
import { describedModel, runsIn } from "../words.js";
import { qualityKind } from "./job/verdict.js";
import { UploadForm, Uploads } from "./uploads/form.js";

const PAGE = 25;

export function Models() {
  const [pages, setPages] = useState(/** @type {string[]} */ ([]));
  const after = pages.length ? `&after=${encodeURIComponent(pages[pages.length - 1])}` : "";
  const { data, error } = useLoaded((signal) => get(`/v1/models?limit=${PAGE}${after}`, signal), [after]);
  const uploads = useLoaded((signal) => get("/v1/uploads?limit=100", signal), [], 10);
  const names = useUploadNames();
  const own = (uploads.data?.data || []).filter((/** @type {any} */ upload) => upload.kind === "model");
  return html`<${PageHead} title="Models" about="What can be compressed on this server, and what was."><a class="button main" href="#/new">New job</a><//>
    <${Fault} error=${error} />
    ${!data && !error ? html`<${Loading} what="the models" />` : null}
    <div class="halves gap">
      ${data ? html`<${Sources} offer=${data.offer} />` : null}
      <${UploadForm} kind="model" done=${uploads.reload} title="Upload a model"
        hint="A directory with config.json, safetensors and the tokenizer's files. Code and pickles are not uploaded. Large models upload faster with intraslice submit ./directory." />
    </div>
    <div class="stack">
      <${Card} title="Uploaded models"><${Fault} error=${uploads.error} />${uploads.data ? html`<${Uploads} label="Uploaded models" empty="No uploads yet." uploads=${own} reload=${uploads.reload} />` : html`<${Loading} />`}<//>
      ${data ? html`<${Card} title="Compressed models">
        <${Results} models=${data.data} offer=${data.offer} names=${names} />
        <div class="actions pages">
          ${pages.length ? html`<button type="button" onClick=${() => setPages(pages.slice(0, -1))}>Newer</button>` : null}
          ${data.has_more ? html`<button type="button" onClick=${() => setPages([...pages, data.next_cursor])}>Older</button>` : null}
        </div>
      <//>` : null}
    </div>`;
}

/** @param {import("../components/paths.js").Entry} entry */
const compressLink = (entry) => html`<a href=${`#/new?path=${encodeURIComponent(entry.path)}`}>Compress<span class="hidden"> ${entry.name}</span></a>`;

/** @param {{ offer: any }} props */
const Sources = ({ offer }) => html`<${Card} title="Sources">
  <div class="stack">
    <div><h3>Preset</h3>${offer.packages.length ? html`<ul class="plain">${offer.packages.map((/** @type {string} */ name) => html`<li><span class="mono">${name}</span> <a href=${`#/new?package=${encodeURIComponent(name)}`}>Compress<span class="hidden"> ${name}</span></a></li>`)}</ul>` : html`<p class="sub">This server has no presets.</p>`}</div>
    <div><h3>Hugging Face Hub</h3><p class="sub">${offer.hub.length ? html`Allowed: <span class="mono">${offer.hub.join(", ")}</span>` : "Hub models are disabled on this server."}</p></div>
    <div><h3>Server path</h3><p class="sub">${offer.roots.length ? html`Directories under <span class="mono">${offer.roots.join(", ")}</span>` : "Server paths are disabled on this server."}</p>
      ${offer.roots.length ? html`<${Browse} summary="Browse the server" use="model" label="Models of the server" action=${compressLink} />` : null}</div>
    <div><h3>Limits</h3><p class="sub">${offer.max_parameters ? `${count(offer.max_parameters)} parameters` : "any number of parameters"}${offer.max_model_bytes ? `, ${bytes(offer.max_model_bytes)} of files` : ""}</p></div>
    <details class="plain"><summary>${offer.architectures.length} supported architectures</summary><div class="actions">${offer.architectures.map((/** @type {string} */ name) => html`<${Tag}>${name}<//>`)}</div></details>
  </div>
<//>`;

/** @param {{ models: any[], offer: any, names: import("../words.js").Names }} props */
const Results = ({ models, offer, names }) => html`<${Table} label="Compressed models" empty="No model has been compressed yet."
  columns=${["Model", "Removed", "Method", "Runs in", "Weights\u00a0", "Perplexity\u00a0", "Generation\u00a0", "Finished"]}
  rows=${models.map(({ job, source, ratio, method, target, result, finished_at }) => [
    html`<a href=${`#/jobs/${job}`}>${describedModel(source, names)}<span class="hidden"> ${job}</span></a>`,
    ratio === null ? "–" : `${share(ratio)} of layer weights`,
    methodTitle(offer, method),
    html`<${Tag}>${runsIn(target)}<//>`,
    result ? html`${bytes(result.bytes_after)} <${Delta} kind=${result.bytes_after < result.bytes_before ? "ok" : ""}>${change(result.bytes_after / result.bytes_before)}<//>` : "–",
    result?.perplexity_after ? html`${perplexity(result.perplexity_after)} <${Delta} kind=${qualityKind(result.perplexity_after / result.perplexity_before)}>${change(result.perplexity_after / result.perplexity_before)}<//>` : "–",
    times(result?.speedup?.decode),
    finished_at ? html`<${Moment} moment=${finished_at} text=${ago(finished_at)} />` : "–",
  ])} />`;
