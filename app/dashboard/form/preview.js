// @ts-check
/** Estimate of a form's result, before anything is queued. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { post } from "../api.js";
import { Bar, Facts, Fault, Note } from "../components/basics.js";
import { Table } from "../components/table.js";
import { bytes, count, durationRange, percent, roughly, share } from "../format.js";
import { methodTitle, reportToShell } from "../hooks.js";
import { capital, runsIn, warningText } from "../words.js";
import { pastText, usePastRatios } from "./past-runs.js";
import { jobBody, methodsOf, missingEntry } from "./request.js";

const DEBOUNCE_MS = 350;

/**
 * Validate the form shortly after each change; a sweep, for each of its jobs. A form that lacks an entry is not sent.
 * @param {import("./request.js").Form} form
 * @returns {{ answers: { ratio: number, method: string, data: any }[], error: any, waiting: boolean }}
 */
export function useEstimate(form) {
  const [estimate, setEstimate] = useState({ answers: /** @type {any[]} */ ([]), error: /** @type {any} */ (null), waiting: true });
  const { label, ...settings } = form;
  useEffect(() => {
    const stop = new AbortController();
    setEstimate((old) => ({ ...old, waiting: true }));
    const timer = setTimeout(async () => {
      if (missingEntry(form)) return setEstimate({ answers: [], error: null, waiting: false });
      try {
        setEstimate({ answers: await validate(form, stop.signal), error: null, waiting: false });
      } catch (error) {
        if (stop.signal.aborted) return;
        reportToShell(error);
        setEstimate({ answers: [], error, waiting: false });
      }
    }, DEBOUNCE_MS);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [JSON.stringify(settings)]);
  return estimate;
}

/** @param {import("./request.js").Form} form @param {AbortSignal} signal */
function validate(form, signal) {
  const ratios = form.size === "sweep" ? form.ratios : [form.ratio];
  const jobs = methodsOf(form).flatMap((method) => ratios.map((ratio) => ({ ratio, method })));
  return Promise.all(jobs.map(async ({ ratio, method }) => {
    return { ratio, method, data: await post("/v1/jobs:validate", jobBody(form, ratio, method), {}, signal) };
  }));
}

/** @param {{ estimate: ReturnType<typeof useEstimate>, form: import("./request.js").Form, offer: any, children?: any }} props */
export function Preview({ estimate, form, offer, children }) {
  const { answers, error, waiting } = estimate;
  const last = answers[answers.length - 1]?.data;
  const entry = missingEntry(form);
  const past = pastText(usePastRatios(form, answers.length === 1));
  const state = entry ? null : error ? html`<span class="state failed">Not possible</span>` : waiting || !last ? html`<span class="state">Estimating …</span>` : html`<span class="state ready">Valid</span>`;
  return html`<section class="card" aria-label="Estimate" aria-busy=${waiting ? "true" : "false"}>
    <header><h2>Estimate</h2>${state}</header>
    <div class="body stack">
      <${Fault} error=${error} />
      ${entry ? html`<p class="sub" role="status">${entry}</p>` : null}
      ${!last && !error && !entry ? html`<p class="sub">Estimating …</p>` : null}
      ${answers.length > 1 ? html`<${SweepEstimate} answers=${answers} offer=${offer} />` : null}
      ${answers.length === 1 ? html`<${JobEstimate} data=${last} offer=${offer} past=${past} />` : null}
      ${last ? html`<${Runs} targets=${last.targets} target=${form.target} />` : null}
      ${last?.warnings.length ? html`<${Note} kind="warn"><ul>${last.warnings.map((/** @type {any} */ warning) => html`<li>${warningText(warning)}</li>`)}</ul><//>` : null}
      ${children}
    </div>
  </section>`;
}

/** Time on the machines that have finished jobs, or a guess before any has. @param {any} data */
function time(data) {
  if (data.seconds === null) return "Known once a worker has opened the model";
  const { durations } = data;
  if (!durations.length) return `${durationRange(data.seconds_low, data.seconds_high)}, a guess until your first job has finished`;
  const low = Math.min(...durations.map((/** @type {any} */ duration) => duration.seconds_low));
  const high = Math.max(...durations.map((/** @type {any} */ duration) => duration.seconds_high));
  return `${durationRange(low, high)}${durations.length > 1 ? ", depending on the machine" : ` on ${durations[0].device}`}`;
}

/** When the job would start, or how many jobs are before it; null without either. A warning says that no worker can run it. @param {any} queue */
function start({ jobs_ahead: ahead, seconds }) {
  if (seconds !== null) return seconds ? `starts in about ${roughly(seconds)}` : "starts at once";
  return ahead ? `${ahead} ${ahead === 1 ? "job" : "jobs"} before it` : null;
}

/** @param {{ data: any, offer: any, past: string | null }} props */
function JobEstimate({ data, offer, past }) {
  const sizes = data.estimate;
  if (!sizes) return html`<p class="sub">Available after a worker has opened the model.</p>`;
  const part = sizes.bytes_after / sizes.bytes_before;
  return html`<div class="stack">
    <div><p class="spread small"><span class="sub">Weights</span><span>${bytes(sizes.bytes_before)} → <b>${bytes(sizes.bytes_after)}</b></span></p>
      <${Bar} part=${part} label=${`${percent(part)} of the weights remain`} /></div>
    <${Facts} pairs=${[
      ["Removed", `${percent(1 - sizes.params_after / sizes.params_before)} of the model`],
      ["Parameters", `${count(sizes.params_before)} → ${count(sizes.params_after)}`],
      ["Perplexity", past],
      ["Memory while running", bytes(sizes.peak_memory_bytes)],
      ["Time", time(data)],
      ["Queue", data.queue && start(data.queue)],
      ["Auto tries", data.tournament?.candidates.map((/** @type {string} */ name) => methodTitle(offer, name)).join(", ")],
      ["Auto leaves out", Object.keys(data.tournament?.excluded || {}).map((name) => methodTitle(offer, name)).join(", ") || null],
    ]} />
  </div>`;
}

/** @param {{ answers: { ratio: number, method: string, data: any }[], offer: any }} props */
function SweepEstimate({ answers, offer }) {
  const known = answers.every(({ data }) => data.seconds !== null);
  const sum = (/** @type {string} */ end) => answers.reduce((total, { data }) => total + data[end], 0);
  const several = new Set(answers.map(({ method }) => method)).size > 1;
  return html`<${Table} label="Jobs of the sweep" columns=${["Removed\u00a0", ...(several ? ["Method"] : []), "Parameters\u00a0", "Weights\u00a0"]}
      rows=${answers.map(({ ratio, method, data }) => [share(ratio), ...(several ? [methodTitle(offer, method)] : []), count(data.estimate?.params_after), bytes(data.estimate?.bytes_after)])} />
    <p class="sub">${known ? `${durationRange(sum("seconds_low"), sum("seconds_high"))} in total, one job at a time; less where jobs share work.` : "Time: known once a worker has opened the model."}</p>`;
}

/** Runtimes of the chosen target, or why the model does not have it. @param {{ targets: any[], target: string }} props */
function Runs({ targets, target }) {
  const option = targets.find((candidate) => candidate.target === target);
  if (!option) return null;
  const runtimes = option.runtimes.join(", ") || runsIn(target);
  return html`<${Facts} pairs=${[["Runs in", option.available ? runtimes : html`<span class="fault">Not possible for this model: ${capital(option.detail)}.</span>`]]} />`;
}
