// @ts-check
/** List of jobs, with counts by state. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Fault, State, Table, Tile, useLoaded } from "../parts.js";
import { ago, targetSize, count, duration, modelName, nats, titleOf } from "../words.js";

const STATES = ["", "queued", "running", "paused", "succeeded", "failed", "cancelled"];
const PAGE = 25;

/** @param {{ service: any }} props */
export function Jobs({ service }) {
  const [state, setState] = useState("");
  const [name, setName] = useState("");
  const [pages, setPages] = useState(/** @type {string[]} */ ([]));
  const [selected, setSelected] = useState(/** @type {string[]} */ ([]));
  const query = listing(state, name, pages.at(-1));
  const { data, error } = useLoaded((signal) => get(query, signal), [query], 2);
  const filter = (/** @type {(value: string) => void} */ set) => (/** @type {any} */ event) => {
    set(event.target.value);
    setPages([]);
  };
  const toggle = (/** @type {string} */ id) =>
    setSelected(selected.includes(id) ? selected.filter((other) => other !== id) : [...selected, id]);
  return html`<h1>Jobs</h1>
    ${data && !data.data.length && !state && !name && !pages.length ? html`<${Welcome} />` : null}
    <div class="tiles">
      <${Tile} name="Queued" value=${service?.jobs.queued ?? "–"} />
      <${Tile} name="Running" value=${service?.jobs.running ?? "–"} />
      <${Tile} name="Paused" value=${service?.jobs.paused ?? "–"} />
      <${Tile} name="Busy workers" value=${service?.busy_workers ?? "–"} note=${service?.workers != null ? `of ${service.workers}` : null} />
    </div>
    ${service?.workers === 0 ? html`<div class="banner" role="status">No workers are running: jobs stay queued until <span class="mono">intraslice worker</span> is started.</div>` : null}
    <div class="actions filters">
      <a class="button main" href="#/new">New job</a>
      ${selected.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${selected.join(",")}`}>Compare ${selected.length} jobs</a>` : null}
      <label class="small">State <select value=${state} onChange=${filter(setState)}>
        ${STATES.map((name) => html`<option value=${name}>${name || "any"}</option>`)}
      </select></label>
      <label class="small">Name <input type="search" placeholder="exact name" value=${name} onChange=${filter(setName)} /></label>
    </div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Jobs" empty=${state || name ? "No jobs match these filters." : "No jobs yet. Start with “New job”."}
      columns=${["", "job", "state", "progress", "settings", "result", "created"]}
      rows=${data.data.map((/** @type {any} */ job) => row(job, selected, toggle))} />` : html`<p class="quiet">Loading …</p>`}
    <div class="actions">
      ${pages.length ? html`<button type="button" onClick=${() => setPages(pages.slice(0, -1))}>Newer</button>` : null}
      ${data?.has_more ? html`<button type="button" onClick=${() => setPages([...pages, data.next_cursor])}>Older</button>` : null}
    </div>`;
}

const Welcome = () => html`<section class="panel" aria-label="Introduction">
  <h2>Compress a language model</h2>
  <p>Choose a model and how much to remove; the estimate shows the result before a job starts. IntraSlice removes dimensions inside attention and MLP and refits the weights that read them. The result is an ordinary checkpoint, compared with the original. Follow the job here, then download the model.</p>
</section>`;

/** @param {string} state @param {string} name @param {string | undefined} after */
function listing(state, name, after) {
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (state) query.set("state", state);
  if (name.trim()) query.set("label.name", name.trim());
  if (after) query.set("after", after);
  return `/v1/jobs?${query}`;
}

/** @param {any} job @param {string[]} selected @param {(id: string) => void} toggle */
const row = (job, selected, toggle) => [
  html`<input type="checkbox" aria-label=${`Select ${job.id}`} checked=${selected.includes(job.id)} onChange=${() => toggle(job.id)} />`,
  html`<a href=${`#/jobs/${job.id}`}><b>${titleOf(job)}</b><br /><span class="mono">${job.id}</span></a>`,
  html`<${State} state=${job.state} />`,
  progress(job),
  html`${targetSize(job)}<br /><span class="quiet small">${modelName(job)}, ${job.compression.target}</span>`,
  outcome(job),
  html`<time datetime=${job.created_at} title=${new Date(job.created_at).toLocaleString()}>${ago(job.created_at)}</time>`,
];

/** @param {any} job */
function progress(job) {
  if (job.state !== "running" || !job.progress) return "";
  const { fraction, layer, layers, eta_seconds: left } = job.progress;
  const position = job.stage === "compress" && layers ? ` ${layer + 1}/${layers}` : "";
  return html`<progress max="1" value=${fraction} aria-label="Progress"></progress>
    <span class="small quiet">${job.stage}${position}${left ? `, ${duration(left)} left` : ""}</span>`;
}

/** @param {any} job */
function outcome(job) {
  if (job.error) return html`<span class="fault">${job.error.code}</span>`;
  const { result } = job;
  if (!result) return "";
  const ratio = result.perplexity_before ? result.perplexity_after / result.perplexity_before : null;
  return html`${count(result.params_before)} → ${count(result.params_after)}
    ${ratio ? html`<br /><span class="quiet small">perplexity × ${ratio.toFixed(2)}${result.kl == null ? "" : `, KL ${nats(result.kl)}`}</span>` : null}`;
}
