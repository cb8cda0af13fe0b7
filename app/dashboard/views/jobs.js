// @ts-check
/** All jobs, and how much there is to do. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Fault, State, Table, Tile, useLoaded } from "../parts.js";
import { ago, askedFor, count, duration, modelName, titleOf } from "../words.js";

const STATES = ["", "queued", "running", "paused", "succeeded", "failed", "cancelled"];
const PAGE = 25;

/** @param {{ service: any }} props */
export function Jobs({ service }) {
  const [state, setState] = useState("");
  const [name, setName] = useState("");
  const [pages, setPages] = useState(/** @type {string[]} */ ([]));
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const query = listing(state, name, pages.at(-1));
  const { data, error } = useLoaded((signal) => get(query, signal), [query], 2);
  const filter = (/** @type {(value: string) => void} */ set) => (/** @type {any} */ event) => {
    set(event.target.value);
    setPages([]);
  };
  const choose = (/** @type {string} */ id) =>
    setChosen(chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id]);
  return html`<h1>Jobs</h1>
    ${data && !data.data.length && !state && !name && !pages.length ? html`<${Welcome} />` : null}
    <div class="tiles">
      <${Tile} name="Queued" value=${service?.jobs.queued ?? "–"} />
      <${Tile} name="Running" value=${service?.jobs.running ?? "–"} />
      <${Tile} name="Paused" value=${service?.jobs.paused ?? "–"} />
      <${Tile} name="Workers at work" value=${service?.busy_workers ?? "–"} note=${service?.workers != null ? `of ${service.workers}` : null} />
    </div>
    ${service?.workers === 0 ? html`<div class="banner" role="status">No worker is there: jobs wait until <span class="mono">intraslice worker</span> is started somewhere.</div>` : null}
    <div class="actions filters">
      <a class="button main" href="#/new">New job</a>
      ${chosen.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${chosen.join(",")}`}>Compare ${chosen.length} jobs</a>` : null}
      <label class="small">In state <select value=${state} onChange=${filter(setState)}>
        ${STATES.map((one) => html`<option value=${one}>${one || "any"}</option>`)}
      </select></label>
      <label class="small">Named <input type="search" placeholder="its whole name" value=${name} onChange=${filter(setName)} /></label>
    </div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Jobs" empty=${state || name ? "None is like that." : "No jobs yet: begin with “New job”."}
      columns=${["", "job", "state", "now", "asked for", "result", "made"]}
      rows=${data.data.map((/** @type {any} */ job) => row(job, chosen, choose))} />` : html`<p class="quiet">Loading …</p>`}
    <div class="actions">
      ${pages.length ? html`<button type="button" onClick=${() => setPages(pages.slice(0, -1))}>Newer</button>` : null}
      ${data?.has_more ? html`<button type="button" onClick=${() => setPages([...pages, data.next_cursor])}>Older</button>` : null}
    </div>`;
}

const Welcome = () => html`<section class="panel" aria-label="What this is">
  <h2>Make a language model smaller</h2>
  <p>Choose a model, say how small, and see what would come of it before anything is begun. Whole dimensions are cut inside attention and MLP, and what reads them is fitted again; the result is an ordinary checkpoint, measured beside the original. Watch it here, then download it.</p>
</section>`;

/** @param {string} state @param {string} name @param {string | undefined} after */
function listing(state, name, after) {
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (state) query.set("state", state);
  if (name.trim()) query.set("label.name", name.trim());
  if (after) query.set("after", after);
  return `/v1/jobs?${query}`;
}

/** @param {any} job @param {string[]} chosen @param {(id: string) => void} choose */
const row = (job, chosen, choose) => [
  html`<input type="checkbox" aria-label=${`Choose ${job.id}`} checked=${chosen.includes(job.id)} onChange=${() => choose(job.id)} />`,
  html`<a href=${`#/jobs/${job.id}`}><b>${titleOf(job)}</b><br /><span class="mono">${job.id}</span></a>`,
  html`<${State} state=${job.state} />`,
  now(job),
  html`${askedFor(job)}<br /><span class="quiet small">${modelName(job)}, ${job.compression.target}</span>`,
  outcome(job),
  html`<time datetime=${job.created_at} title=${new Date(job.created_at).toLocaleString()}>${ago(job.created_at)}</time>`,
];

/** @param {any} job */
function now(job) {
  if (job.state !== "running" || !job.progress) return "";
  const { fraction, layer, layers, eta_seconds: left } = job.progress;
  const place = job.stage === "compress" && layers ? ` ${layer + 1}/${layers}` : "";
  return html`<progress max="1" value=${fraction} aria-label="Progress"></progress>
    <span class="small quiet">${job.stage}${place}${left ? `, ${duration(left)} left` : ""}</span>`;
}

/** @param {any} job */
function outcome(job) {
  if (job.error) return html`<span class="fault">${job.error.code}</span>`;
  const found = job.result;
  if (!found) return "";
  const ratio = found.perplexity_before ? found.perplexity_after / found.perplexity_before : null;
  return html`${count(found.params_before)} → ${count(found.params_after)}
    ${ratio ? html`<br /><span class="quiet small">perplexity × ${ratio.toFixed(2)}</span>` : null}`;
}
