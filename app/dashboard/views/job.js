// @ts-check
/** One job: live while it runs, its files and figures when it is done. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { get, getPage, post, remove, watch } from "../api.js";
import { Chart } from "../charts.js";
import { Action, Facts, Fault, State, Table, Tile, tellShell, useLoaded } from "../parts.js";
import { Shapes } from "../shapes.js";
import { ENDED, ago, askedFor, bytes, count, duration, modelName, percent } from "../words.js";

/** @param {{ id: string }} props */
export function Job({ id }) {
  const loaded = useLoaded((signal) => get(`/v1/jobs/${id}`, signal), [id]);
  const [live, setLive] = useState(/** @type {any} */ (null));
  const [events, setEvents] = useState(/** @type {any[]} */ ([]));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [round, setRound] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setEvents([]);
    const tell = (/** @type {string} */ kind, /** @type {any} */ data) => {
      if (kind === "live") setLive(data);
      if (kind === "away") tellShell({ message: "away" });
      if (kind === "back") tellShell(null);
      if (kind !== "event") return;
      setEvents((old) => (old.some((one) => one.sequence === data.sequence) ? old : [...old, data]));
      if (data.type !== "progress") loaded.reload();
    };
    watch(id, tell, stop.signal).catch((found) => {
      setError(found);
      tellShell(found);
    });
    return () => stop.abort();
  }, [id, round]);
  const job = loaded.data && { ...loaded.data, ...(ENDED.includes(loaded.data.state) ? {} : live) };
  if (!job) return html`<${Fault} error=${loaded.error || error} /><p class="quiet">Loading …</p>`;
  const again = () => {
    setLive(null);
    setRound(round + 1);
    loaded.reload();
  };
  return html`<h1>${modelName(job)} <${State} state=${job.state} /></h1>
    <p class="quiet"><span class="mono">${job.id}</span> · ${askedFor(job)} · target ${job.compression.target} · made ${ago(job.created_at)}</p>
    <${Buttons} job=${job} again=${again} />
    ${job.error ? html`<${Failure} error=${job.error} />` : null}
    ${job.state === "running" ? html`<${Running} job=${job} />` : null}
    ${job.result ? html`<${Result} result=${job.result} />` : null}
    <${Layers} job=${job} events=${events} />
    ${job.state === "succeeded" ? html`<${Files} id=${id} />` : null}
    <details><summary>Settings</summary>
      <${Facts} pairs=${flat({ compression: job.compression, evaluation: job.evaluation, labels: job.labels })} />
    </details>
    <${Log} events=${events} />`;
}

/** @param {{ job: any, again: () => void }} props */
function Buttons({ job, again }) {
  const verb = (/** @type {string} */ name) => async () => {
    await post(`/v1/jobs/${job.id}/${name}`);
    again();
  };
  const running = ["queued", "running"].includes(job.state);
  const openReport = async () => {
    const page = new Blob([await getPage(`/v1/jobs/${job.id}/report`)], { type: "text/html" });
    window.open(URL.createObjectURL(page), "_blank", "noopener");
  };
  return html`<div class="actions">
    ${running ? html`<${Action} work=${verb("pause")}>Pause<//>` : null}
    ${["paused"].includes(job.state) ? html`<${Action} kind="main" work=${verb("resume")}>Resume<//>` : null}
    ${running || job.state === "paused" ? html`<${Action} work=${verb("cancel")}>Cancel<//>` : null}
    ${["failed", "cancelled"].includes(job.state) ? html`<${Action} kind="main" work=${verb("retry")}>Retry<//>` : null}
    ${job.state === "succeeded" ? html`<${Action} kind="main" work=${openReport}>Open the report<//>` : null}
    ${job.sweep_id ? html`<a class="button" href=${`#/sweeps/${job.sweep_id}`}>Its sweep</a>` : null}
    ${ENDED.includes(job.state) ? html`<${Action} confirm="Forget this job and its files?" work=${async () => { await remove(`/v1/jobs/${job.id}`); location.hash = "#/jobs"; }}>Delete<//>` : null}
  </div>`;
}

/** @param {{ error: any }} props */
const Failure = ({ error }) => html`<div role="alert">
  <p class="fault"><b>${error.code}</b>: ${error.message}</p>
  <${Facts} pairs=${[["stage", error.stage], ["layer", error.layer], ["hint", error.hint], ["may be retried", error.retryable ? "yes" : "no"]]} />
</div>`;

/** @param {{ job: any }} props */
function Running({ job }) {
  const progress = job.progress;
  if (!progress) return html`<p class="quiet">A worker has taken it.</p>`;
  const layer = progress.layers ? `layer ${progress.layer + 1} of ${progress.layers}` : "";
  const elapsed = (Date.now() - Date.parse(job.started_at)) / 1000;
  const pace = progress.layers && job.stage === "compress" && progress.layer > 0 ? `${((60 * progress.layer) / Math.max(elapsed, 1)).toFixed(1)} layers/min since the start` : "";
  return html`<section aria-label="Progress">
    <progress max="1" value=${progress.fraction} aria-label="Progress"></progress>
    <p><b>${job.stage}</b> ${layer} · ${percent(progress.fraction)}${progress.eta_seconds ? ` · ${duration(progress.eta_seconds)} left` : ""}${pace ? ` · ${pace}` : ""}</p>
    <p class="quiet" role="status">${progress.message}</p>
  </section>`;
}

/** @param {{ result: any }} props */
const Result = ({ result }) => html`<div class="tiles">
  <${Tile} name="Parameters" value=${count(result.params_after)} note=${`of ${count(result.params_before)}`} />
  <${Tile} name="Weights" value=${bytes(result.bytes_after)} note=${`of ${bytes(result.bytes_before)}`} />
  ${result.perplexity_before ? html`<${Tile} name="Perplexity" value=${`× ${(result.perplexity_after / result.perplexity_before).toFixed(2)}`} note=${`${result.perplexity_before.toFixed(1)} → ${result.perplexity_after.toFixed(1)}`} />` : null}
  ${result.speedup ? html`<${Tile} name="Speed" value=${`${result.speedup.decode.toFixed(2)} ×`} note=${`decode; prefill ${result.speedup.prefill.toFixed(2)} ×`} />` : null}
</div>`;

/** @param {{ job: any, events: any[] }} props */
function Layers({ job, events }) {
  /** @type {any[]} */
  const layers = [];
  let total = 0;
  for (const event of events) {
    const done = event.data?.finished;
    if (event.data?.layers) total = event.data.layers;
    if (done) layers[done.layer] = done;
  }
  const now = job.progress?.finished;
  if (now) layers[now.layer] = now;
  if (!total) return null;
  const known = layers.filter(Boolean);
  const numbers = known.map((one) => one.layer);
  const curve = (/** @type {string} */ name) => known.map((one) => one[name] ?? null);
  return html`<h2>Layers</h2>
    <${Shapes} layers=${layers} total=${total} />
    ${known.length > 1 ? html`<div class="columns">
      <${Chart} title="Relative error by layer" note="‖output − target‖² / ‖target‖²: 0 is exact." x="layer" y="error" log=${true}
        names=${["attention", "MLP"]} columns=${[numbers, curve("attention_error"), curve("mlp_error")]}
        head=${["layer", "attention", "MLP"]} rows=${known.map((one) => [one.layer, short(one.attention_error), short(one.mlp_error)])} />
      <${Chart} title="Explained energy by layer" note="The part of the values' energy that is kept." x="layer" y="part"
        names=${["values"]} columns=${[numbers, curve("explained_energy")]}
        head=${["layer", "values"]} rows=${known.map((one) => [one.layer, short(one.explained_energy)])} />
    </div>` : null}`;
}

/** @param {number | null | undefined} value */
const short = (value) => (value === null || value === undefined ? "–" : value.toPrecision(3));

/** @param {{ id: string }} props */
function Files({ id }) {
  const { data, error } = useLoaded((signal) => get(`/v1/jobs/${id}/artifacts`, signal), [id]);
  const handOffs = useLoaded((signal) => get(`/v1/jobs/${id}/hand-offs`, signal), [id]);
  return html`<h2>Files</h2>
    <p class="quiet small">Together they are a checkpoint that transformers loads. <span class="mono">intraslice download ${id} DIR</span> fetches and checks all of them.</p>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Files" columns=${["file", "size\u00a0", "SHA-256"]}
      rows=${data.data.map((/** @type {any} */ file) => [html`<a href=${file.url} download=${file.name.split("/").pop()}>${file.name}</a>`, bytes(file.bytes), html`<span class="mono">${file.sha256}</span>`])} />` : null}
    ${handOffs.data?.data.length ? html`<h2>Handed off</h2>
      <${Table} label="Hand-offs" columns=${["to", "state", "where", "error"]} rows=${handOffs.data.data.map((/** @type {any} */ one) => [one.target, one.state, one.reference || "", one.error || ""])} />` : null}`;
}

/** @param {{ events: any[] }} props */
const Log = ({ events }) => html`<details><summary>Events (${events.length})</summary>
  <${Table} label="Events" columns=${["", "time", "event", "attempt", ""]}
    rows=${events.map((one) => [one.sequence, new Date(one.created_at).toLocaleTimeString(), one.type, one.attempt, one.data?.message || one.data?.code || ""])} />
</details>`;

/** @param {any} value @param {string} [prefix] @returns {[string, any][]} */
function flat(value, prefix = "") {
  return Object.entries(value || {}).flatMap(([name, one]) =>
    one && typeof one === "object" && !Array.isArray(one)
      ? flat(one, `${prefix}${name}.`)
      : [/** @type {[string, any]} */ ([`${prefix}${name}`, Array.isArray(one) ? JSON.stringify(one) : one === null ? null : String(one)])],
  );
}
