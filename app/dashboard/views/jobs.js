// @ts-check
/** All jobs, and how much there is to do. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Fault, State, Table, Tile, useLoaded } from "../parts.js";
import { ago, askedFor, count, duration, modelName } from "../words.js";

const STATES = ["", "queued", "running", "paused", "succeeded", "failed", "cancelled"];

/** @param {{ service: any }} props */
export function Jobs({ service }) {
  const [state, setState] = useState("");
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const query = state ? `&state=${state}` : "";
  const { data, error } = useLoaded((signal) => get(`/v1/jobs?limit=50${query}`, signal), [state], 2);
  const choose = (/** @type {string} */ id) =>
    setChosen(chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id]);
  return html`<h1>Jobs</h1>
    <div class="tiles">
      <${Tile} name="Queued" value=${service?.jobs.queued ?? "–"} />
      <${Tile} name="Running" value=${service?.jobs.running ?? "–"} />
      <${Tile} name="Paused" value=${service?.jobs.paused ?? "–"} />
      <${Tile} name="Workers at work" value=${service?.busy_workers ?? "–"} />
    </div>
    <div class="actions">
      <a class="button main" href="#/new">New job</a>
      ${chosen.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${chosen.join(",")}`}>Compare ${chosen.length} jobs</a>` : null}
      <label class="small">In state <select style="width: auto" value=${state} onChange=${(/** @type {any} */ e) => setState(e.target.value)}>
        ${STATES.map((one) => html`<option value=${one}>${one || "any"}</option>`)}
      </select></label>
    </div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Jobs" empty="No jobs yet: begin with “New job”."
      columns=${["", "job", "state", "now", "model", "asked for", "result", "made"]}
      rows=${data.data.map((/** @type {any} */ job) => row(job, chosen, choose))} />` : html`<p class="quiet">Loading …</p>`}`;
}

/** @param {any} job @param {string[]} chosen @param {(id: string) => void} choose */
const row = (job, chosen, choose) => [
  html`<input type="checkbox" aria-label=${`Choose ${job.id}`} checked=${chosen.includes(job.id)} onChange=${() => choose(job.id)} />`,
  html`<a class="mono" href=${`#/jobs/${job.id}`}>${job.id}</a>`,
  html`<${State} state=${job.state} />`,
  now(job),
  modelName(job),
  `${askedFor(job)}, ${job.compression.target}`,
  outcome(job),
  ago(job.created_at),
];

/** @param {any} job */
function now(job) {
  if (job.state !== "running" || !job.progress) return "";
  const left = job.progress.eta_seconds ? `, ${duration(job.progress.eta_seconds)} left` : "";
  return html`<progress max="1" value=${job.progress.fraction} aria-label="Progress"></progress>
    <span class="small quiet">${job.stage}${left}</span>`;
}

/** @param {any} job */
function outcome(job) {
  if (job.error) return html`<span class="fault">${job.error.code}</span>`;
  const found = job.result;
  if (!found) return "";
  const ratio = found.perplexity_before ? found.perplexity_after / found.perplexity_before : null;
  return `${count(found.params_before)} → ${count(found.params_after)}${ratio ? `, perplexity × ${ratio.toFixed(2)}` : ""}`;
}
