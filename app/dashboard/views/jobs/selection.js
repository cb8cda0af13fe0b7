// @ts-check
/** Bar of what can be done with the selected jobs, and the jobs as CSV. */

import { html } from "../../vendor/htm-preact.js";
import { post, remove } from "../../api.js";
import { Action, csv, save } from "../../components/actions.js";
import { ENDED, modelName, titleOf } from "../../words.js";
import { labelsOf } from "./listing.js";

/** Numbers of jobs that can be compared. */
const [FEWEST, MOST] = [2, 20];

/** @param {{ jobs: any[], clear: () => void, reload: () => void, uploads: import("../../words.js").Names }} props */
export function SelectionBar({ jobs, clear, reload, uploads }) {
  if (!jobs.length) return null;
  const active = jobs.filter((job) => ["queued", "running", "paused"].includes(job.state));
  const ended = jobs.filter((job) => ENDED.includes(job.state));
  const cancel = async () => {
    await all(active, (job) => post(`/v1/jobs/${job.id}/cancel`));
    reload();
  };
  const erase = async () => {
    await all(ended, (job) => remove(`/v1/jobs/${job.id}`));
    clear();
    reload();
  };
  const comparable = jobs.length >= FEWEST && jobs.length <= MOST;
  return html`<div class="selection" role="region" aria-label="Selected jobs">
    <b>${jobs.length} selected</b>
    <div class="actions">
      ${comparable ? html`<a class="button main" href=${`#/compare?jobs=${jobs.map((job) => job.id).join(",")}`}>Compare ${jobs.length} jobs</a>` : html`<span class="sub small">Select ${FEWEST} to ${MOST} jobs to compare them</span>`}
      <button type="button" onClick=${() => saveJobs(jobs, uploads)}>Export CSV</button>
      ${active.length ? html`<${Action} kind="danger" confirm=${`Cancel ${active.length} ${active.length === 1 ? "job" : "jobs"}?`} work=${cancel}>Cancel ${active.length}<//>` : null}
      ${ended.length ? html`<${Action} kind="danger" confirm=${`Delete ${ended.length} ${ended.length === 1 ? "job" : "jobs"} and their files?`} work=${erase}>Delete ${ended.length}<//>` : null}
      <button type="button" class="ghost" onClick=${clear}>Clear</button>
    </div>
  </div>`;
}

/** Do the same with every job; the error says how many failed. @param {any[]} jobs @param {(job: any) => Promise<any>} work */
async function all(jobs, work) {
  const results = await Promise.allSettled(jobs.map(work));
  const failures = results.filter((result) => result.status === "rejected");
  if (!failures.length) return;
  const [{ reason }] = /** @type {PromiseRejectedResult[]} */ (failures);
  throw failures.length === 1 ? reason : new Error(`${failures.length} of ${jobs.length} failed: ${reason.message}`);
}

const COLUMNS = [
  "id", "name", "state", "model", "target", "method", "ratio", "params_before", "params_after", "bytes_before", "bytes_after",
  "perplexity_before", "perplexity_after", "prefill_speedup", "decode_speedup", "created_at", "started_at", "finished_at", "labels",
];

/** Save jobs as CSV, with exact numbers. @param {any[]} jobs @param {import("../../words.js").Names} uploads */
export function saveJobs(jobs, uploads) {
  const rows = jobs.map((job) => [
    job.id, titleOf(job, uploads), job.state, modelName(job.model, uploads), job.compression.target, job.compression.method, job.compression.ratio,
    job.result?.params_before, job.result?.params_after, job.result?.bytes_before, job.result?.bytes_after,
    job.result?.perplexity_before, job.result?.perplexity_after, job.result?.speedup?.prefill, job.result?.speedup?.decode,
    job.created_at, job.started_at, job.finished_at, labelsOf(job).map((label) => label.join("=")).join("; "),
  ]);
  save("jobs.csv", csv(COLUMNS, rows), "text/csv");
}
