// @ts-check
/** Where a job is: its stages, how far, how fast, how long still. */

import { html } from "../../vendor/htm-preact.js";
import { duration, percent } from "../../words.js";

const STAGES = ["load", "calibrate", "allocate", "compress", "recover", "verify", "evaluate", "export", "publish"];

/** @param {{ job: any, events: any[] }} props */
export function Running({ job, events }) {
  const progress = job.progress;
  if (!progress) return html`<p class="quiet">A worker has taken it.</p>`;
  const layer = progress.layers ? ` layer ${progress.layer + 1} of ${progress.layers}` : "";
  const pace = throughput(events.filter((one) => one.attempt === job.attempt));
  const facts = [
    percent(progress.fraction, 0),
    progress.eta_seconds ? `${duration(progress.eta_seconds)} left` : "",
    pace ? `${pace.toFixed(1)} layers/min` : "",
  ].filter(Boolean);
  return html`<section aria-label="Progress">
    <progress max="1" value=${progress.fraction} aria-label="Progress"></progress>
    <p><b>${job.stage}</b>${layer} · ${facts.join(" · ")}</p>
    <${Stages} job=${job} events=${events} />
    <p class="quiet" role="status">${progress.message}</p>
  </section>`;
}

/** Layers a minute, of the last few: early layers tell little of the machine's mood now. @param {any[]} events */
function throughput(events) {
  const done = events.filter((one) => one.data?.finished).slice(-9);
  if (done.length < 2) return null;
  const [first, last] = [done[0], done[done.length - 1]].map((one) => Date.parse(one.created_at));
  return last > first ? (60_000 * (done.length - 1)) / (last - first) : null;
}

/** Stages in order, and what each took. @param {{ job: any, events: any[] }} props */
export function Stages({ job, events }) {
  const spans = durations(job, events);
  const asked = STAGES.filter((one) => spans.has(one) || (job.state === "running" && wanted(job, one)));
  if (!spans.size) return null;
  return html`<ol class="stages" aria-label="Stages">
    ${asked.map((one) => {
      const now = job.state === "running" && job.stage === one;
      return html`<li class=${spans.has(one) ? "done" : ""} aria-current=${now ? "step" : undefined}>${one}<span class="quiet small">${spans.has(one) && !now ? duration(spans.get(one)) : now ? "now" : ""}</span></li>`;
    })}
  </ol>`;
}

/** @param {any} job @param {string} stage */
function wanted(job, stage) {
  if (stage === "recover") return Boolean(job.compression.recover);
  if (stage === "evaluate") return Boolean(job.evaluation);
  if (stage === "export") return job.compression.exports.length > 1;
  return true;
}

/** Seconds by stage, of the last attempt. @param {any} job @param {any[]} events @returns {Map<string, number>} */
function durations(job, events) {
  const found = new Map();
  const of = events.filter((one) => one.attempt === job.attempt && (one.data?.stage || ["succeeded", "failed", "cancelled"].includes(one.type)));
  of.forEach((one, at) => {
    const stage = one.type === "progress" ? one.data.stage : null;
    if (!stage) return;
    const until = of[at + 1] ? Date.parse(of[at + 1].created_at) : Date.now();
    found.set(stage, (found.get(stage) || 0) + Math.max(0, until - Date.parse(one.created_at)) / 1000);
  });
  return found;
}
