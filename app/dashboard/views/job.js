// @ts-check
/** One job: progress while it runs, results and files afterwards. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { get, getPage, post, remove, watch } from "../api.js";
import { Action, Facts, Fault, State, Table, reportToShell, useLoaded, useTitle } from "../parts.js";
import { ENDED, ago, targetSize, bytes, duration, modelName, percent, titleOf } from "../words.js";
import { Layers } from "./job/layers.js";
import { Outcome } from "./job/outcome.js";
import { Running, Stages } from "./job/running.js";

/** @param {{ id: string }} props */
export function Job({ id }) {
  const { job, events, error, restart } = useJob(id);
  useTitle(job ? heading(job) : "Job");
  if (!job) return html`<h1>Job</h1><${Fault} error=${error} />${error ? null : html`<p class="quiet">Loading …</p>`}`;
  const took = job.started_at && job.finished_at ? (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000 : null;
  return html`<h1>${titleOf(job)} <${State} state=${job.state} /></h1>
    <p class="quiet">${modelName(job)} · ${targetSize(job)} · target ${job.compression.target} · created ${ago(job.created_at)}${took ? ` · took ${duration(took)}` : ""} · <span class="mono">${job.id}</span></p>
    <${Buttons} job=${job} restart=${restart} />
    ${job.error ? html`<${Failure} error=${job.error} />` : null}
    ${job.state === "queued" ? html`<p class="quiet">Queued: waiting for a worker.</p>` : null}
    ${job.state === "running" ? html`<${Running} job=${job} events=${events} />` : null}
    ${job.artifacts_missing ? html`<div class="banner" role="status">Files of this job are missing in the artifact store. Restore the store from a backup, or submit the job again.</div>` : null}
    ${job.result ? html`<${Outcome} job=${job} />` : null}
    ${job.state === "succeeded" ? html`<${Files} id=${id} />` : null}
    <${Layers} job=${job} events=${events} />
    ${ENDED.includes(job.state) ? html`<${Stages} job=${job} events=${events} />` : null}
    <details><summary>Settings</summary>
      <${Facts} pairs=${flat({ compression: job.compression, evaluation: job.evaluation, labels: job.labels })} />
    </details>
    <${Log} events=${events} />`;
}

/** The job and its events, followed until it ends. @param {string} id */
function useJob(id) {
  const loaded = useLoaded((signal) => get(`/v1/jobs/${id}`, signal), [id]);
  const [live, setLive] = useState(/** @type {any} */ (null));
  const [events, setEvents] = useState(/** @type {any[]} */ ([]));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [restarts, setRestarts] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setEvents([]);
    const receive = (/** @type {string} */ kind, /** @type {any} */ data) => {
      if (kind === "live") setLive(data);
      if (kind === "unavailable") reportToShell({ message: "unavailable" });
      if (kind === "available") reportToShell(null);
      if (kind !== "event") return;
      setEvents((old) => (old.some((event) => event.sequence === data.sequence) ? old : [...old, data]));
      if (data.type !== "progress") loaded.reload();
    };
    watch(id, receive, stop.signal).catch((failure) => {
      setError(failure);
      reportToShell(failure);
    });
    return () => stop.abort();
  }, [id, restarts]);
  const restart = () => {
    setLive(null);
    setRestarts(restarts + 1);
    loaded.reload();
  };
  const ended = loaded.data && ENDED.includes(loaded.data.state);
  return { job: loaded.data && { ...loaded.data, ...(ended ? {} : live) }, events, error: loaded.error || error, restart };
}

/** Title of the window, readable from other windows. @param {any} job */
const heading = (job) => `${job.state === "running" && job.progress ? percent(job.progress.fraction, 0) : job.state} · ${titleOf(job)}`;

/** @param {{ job: any, restart: () => void }} props */
function Buttons({ job, restart }) {
  const verb = (/** @type {string} */ name) => async () => {
    await post(`/v1/jobs/${job.id}/${name}`);
    restart();
  };
  const running = ["queued", "running"].includes(job.state);
  const openReport = async () => {
    const page = new Blob([await getPage(`/v1/jobs/${job.id}/report`)], { type: "text/html" });
    window.open(URL.createObjectURL(page), "_blank", "noopener");
  };
  return html`<div class="actions">
    ${job.state === "succeeded" ? html`<${Download} id=${job.id} /><${Action} work=${openReport}>Open report<//>` : null}
    ${running ? html`<${Action} work=${verb("pause")}>Pause<//>` : null}
    ${["paused"].includes(job.state) ? html`<${Action} kind="main" work=${verb("resume")}>Resume<//>` : null}
    ${running || job.state === "paused" ? html`<${Action} work=${verb("cancel")}>Cancel<//>` : null}
    ${["failed", "cancelled"].includes(job.state) ? html`<${Action} kind="main" work=${verb("retry")}>Retry<//>` : null}
    <a class="button" href=${`#/new?like=${job.id}`}>Duplicate</a>
    ${job.sweep_id ? html`<a class="button" href=${`#/sweeps/${job.sweep_id}`}>View sweep</a>` : null}
    ${ENDED.includes(job.state) ? html`<${Action} confirm="Delete this job and its files?" work=${async () => { await remove(`/v1/jobs/${job.id}`); location.hash = "#/jobs"; }}>Delete<//>` : null}
  </div>`;
}

/** The link is fetched on click, because links expire. @param {{ id: string }} props */
function Download({ id }) {
  const fetchAll = async () => {
    const { archive } = await get(`/v1/jobs/${id}/artifacts`);
    if (!archive) throw new Error("The files have been removed.");
    const link = document.createElement("a");
    link.href = archive.url;
    link.download = archive.name;
    link.click();
  };
  return html`<${Action} kind="main" work=${fetchAll}>Download model<//>`;
}

/** @param {{ error: any }} props */
const Failure = ({ error }) => html`<div role="alert">
  <p class="fault"><b>${error.code}</b>: ${error.message}</p>
  <${Facts} pairs=${[["stage", error.stage], ["layer", error.layer], ["hint", error.hint], ["retryable", error.retryable ? "yes" : "no"]]} />
</div>`;

/** @param {{ id: string }} props */
function Files({ id }) {
  const { data, error } = useLoaded((signal) => get(`/v1/jobs/${id}/artifacts`, signal), [id]);
  const handOffs = useLoaded((signal) => get(`/v1/jobs/${id}/hand-offs`, signal), [id]).data?.data;
  const sum = data?.data.reduce((/** @type {number} */ total, /** @type {any} */ file) => total + file.bytes, 0);
  return html`<h2>Files${data ? html` <span class="quiet small">${data.data.length}, ${bytes(sum)}</span>` : null}</h2>
    <p class="quiet small">A checkpoint for transformers. Download and verify it with <span class="mono">intraslice download ${id} DIR</span>.</p>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Files" empty="The files have been removed." columns=${["file", "size\u00a0", "SHA-256"]}
      rows=${data.data.map((/** @type {any} */ file) => [html`<a href=${file.url} download=${file.name.split("/").pop()}>${file.name}</a>`, bytes(file.bytes), html`<span class="mono digest" title=${file.sha256}>${file.sha256}</span>`])} />` : null}
    ${handOffs?.length ? html`<h2>Registry hand-offs</h2>
      <${Table} label="Hand-offs" columns=${["target", "state", "reference", "error"]} rows=${handOffs.map((/** @type {any} */ handOff) => [handOff.target, handOff.state, handOff.reference || "", handOff.error || ""])} />` : null}`;
}

/** @param {{ events: any[] }} props */
const Log = ({ events }) => html`<details><summary>Events (${events.length})</summary>
  <${Table} label="Events" columns=${["", "time", "event", "attempt", ""]}
    rows=${events.map((event) => [event.sequence, new Date(event.created_at).toLocaleTimeString(), event.type, event.attempt, event.data?.message || event.data?.code || ""])} />
</details>`;

/** @param {any} value @param {string} [prefix] @returns {[string, any][]} */
function flat(value, prefix = "") {
  return Object.entries(value || {}).flatMap(([name, field]) =>
    field && typeof field === "object" && !Array.isArray(field)
      ? flat(field, `${prefix}${name}.`)
      : [/** @type {[string, any]} */ ([`${prefix}${name}`, Array.isArray(field) ? JSON.stringify(field) : field === null ? null : String(field)])],
  );
}
