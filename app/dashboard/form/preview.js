// @ts-check
/** Estimate of a form's result, before anything is queued. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { post } from "../api.js";
import { Facts, Fault, Table, reportToShell } from "../parts.js";
import { bytes, count, duration, percent } from "../words.js";
import { jobBody, methodsOf } from "./request.js";

const DEBOUNCE_MS = 350;

/**
 * Validate the form shortly after each change; a sweep, for each of its jobs.
 * @param {import("./request.js").Form} form
 * @returns {{ answers: { ratio: number, method: string, data: any }[], error: any, waiting: boolean }}
 */
export function useEstimate(form) {
  const [estimate, setEstimate] = useState({ answers: /** @type {any[]} */ ([]), error: /** @type {any} */ (null), waiting: true });
  useEffect(() => {
    const stop = new AbortController();
    setEstimate((old) => ({ ...old, waiting: true }));
    const timer = setTimeout(async () => {
      if (!form.ref) return setEstimate({ answers: [], error: null, waiting: false });
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
  }, [JSON.stringify(form)]);
  return estimate;
}

/** @param {import("./request.js").Form} form @param {AbortSignal} signal */
function validate(form, signal) {
  const ratios = form.size === "sweep" ? form.ratios : [form.ratio];
  if (!ratios.length) throw new Error("Select at least one percentage.");
  if (!methodsOf(form).length) throw new Error("Select at least one method.");
  const jobs = methodsOf(form).flatMap((method) => ratios.map((ratio) => ({ ratio, method })));
  return Promise.all(jobs.map(async ({ ratio, method }) => {
    return { ratio, method, data: await post("/v1/jobs:validate", jobBody(form, ratio, method), {}, signal) };
  }));
}

/** @param {{ estimate: ReturnType<typeof useEstimate>, form: import("./request.js").Form }} props */
export function Preview({ estimate, form }) {
  const { answers, error, waiting } = estimate;
  const last = answers[answers.length - 1]?.data;
  return html`<section aria-label="Estimate" aria-busy=${waiting}>
    <h2>Estimate</h2>
    <${Fault} error=${error} />
    ${!last && !error ? html`<p class="quiet">${form.ref ? "Estimating …" : "Choose a model first."}</p>` : null}
    ${answers.length > 1 ? html`<${SweepEstimate} answers=${answers} />` : null}
    ${answers.length === 1 ? html`<${JobEstimate} data=${last} />` : null}
    ${last ? html`<${Runs} targets=${last.targets} target=${form.target} />` : null}
    ${last?.warnings.length ? html`<div class="banner"><ul>${last.warnings.map((/** @type {any} */ warning) => html`<li>${warning.message}</li>`)}</ul></div>` : null}
  </section>`;
}

/** @param {any} data */
const time = (data) => (data.seconds ? `about ${duration(data.seconds)} on ${data.durations[0].device}` : "Available after your first job");

/** @param {{ data: any }} props */
function JobEstimate({ data }) {
  const sizes = data.estimate;
  if (!sizes) return html`<p class="quiet">Available after a worker has opened the model.</p>`;
  return html`<${Facts} pairs=${[
    ["parameters", `${count(sizes.params_before)} → ${count(sizes.params_after)}`],
    ["weights", `${bytes(sizes.bytes_before)} → ${bytes(sizes.bytes_after)}`],
    ["removed", percent(1 - sizes.params_after / sizes.params_before)],
    ["memory", bytes(sizes.peak_memory_bytes)],
    ["time", time(data)],
    ["auto tries", data.tournament?.candidates.join(", ")],
    ["without", Object.keys(data.tournament?.excluded || {}).join(", ") || null],
  ]} />`;
}

/** @param {{ answers: { ratio: number, method: string, data: any }[] }} props */
function SweepEstimate({ answers }) {
  const seconds = answers.map(({ data }) => data.seconds);
  const total = seconds.every(Boolean) ? duration(seconds.reduce((a, b) => a + b, 0)) : null;
  return html`<${Table} label="Jobs of the sweep" columns=${["removed\u00a0", "method", "parameters\u00a0", "weights\u00a0", "memory\u00a0"]}
      rows=${answers.map(({ ratio, method, data }) => [percent(ratio, 0), method, count(data.estimate?.params_after), bytes(data.estimate?.bytes_after), bytes(data.estimate?.peak_memory_bytes)])} />
    <p class="quiet">${total ? `Up to about ${total} in total, one job at a time.` : "Time: available after your first job."}</p>`;
}

/** @param {{ targets: any[], target: string }} props */
const Runs = ({ targets, target }) => html`<p class="label">Runs in</p>
  <${Facts} pairs=${targets.map((option) => [
    option.target,
    html`<span class=${option.target === target ? "chosen" : "quiet"}>${option.available ? option.runtimes.join(", ") || "available" : option.detail}</span>`,
  ])} />`;
