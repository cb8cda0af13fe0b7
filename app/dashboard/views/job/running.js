// @ts-check
/** Progress of a running job: stages, fraction, pace, time left. */

import { html } from "../../vendor/htm-preact.js";
import { duration, percent } from "../../words.js";

const STAGES = ["load", "tournament", "calibrate", "allocate", "compress", "recover", "verify", "evaluate", "export", "publish"];

/** @param {{ job: any, events: any[] }} props */
export function Running({ job, events }) {
  const progress = job.progress;
  if (!progress) return html`<p class="quiet">Starting…</p>`;
  const layer = progress.layers ? ` layer ${progress.layer + 1} of ${progress.layers}` : "";
  const pace = throughput(events.filter((event) => event.attempt === job.attempt));
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

/** Layers per minute over the last few layers: earlier ones say little about the current pace. @param {any[]} events */
function throughput(events) {
  const done = events.filter((event) => event.data?.finished).slice(-9);
  if (done.length < 2) return null;
  const [first, last] = [done[0], done[done.length - 1]].map((event) => Date.parse(event.created_at));
  return last > first ? (60_000 * (done.length - 1)) / (last - first) : null;
}

/** Stages in order, with their durations. @param {{ job: any, events: any[] }} props */
export function Stages({ job, events }) {
  const spans = durations(job, events);
  const stages = STAGES.filter((stage) => spans.has(stage) || (job.state === "running" && isPlanned(job, stage)));
  if (!spans.size) return null;
  return html`<ol class="stages" aria-label="Stages">
    ${stages.map((stage) => {
      const now = job.state === "running" && job.stage === stage;
      return html`<li class=${spans.has(stage) ? "done" : ""} aria-current=${now ? "step" : undefined}>${stage}<span class="quiet small">${spans.has(stage) && !now ? duration(spans.get(stage)) : now ? "now" : ""}</span></li>`;
    })}
  </ol>`;
}

/** @param {any} job @param {string} stage */
function isPlanned(job, stage) {
  if (stage === "tournament") return job.compression.method === "auto";
  if (stage === "recover") return Boolean(job.compression.recover);
  if (stage === "evaluate") return Boolean(job.evaluation);
  if (stage === "export") return job.compression.exports.length > 1;
  return true;
}

/** Seconds per stage of the last attempt. @param {any} job @param {any[]} events @returns {Map<string, number>} */
function durations(job, events) {
  const seconds = new Map();
  const changes = events.filter((event) => event.attempt === job.attempt && (event.data?.stage || ["succeeded", "failed", "cancelled"].includes(event.type)));
  changes.forEach((event, at) => {
    const stage = event.type === "progress" ? event.data.stage : null;
    if (!stage) return;
    const until = changes[at + 1] ? Date.parse(changes[at + 1].created_at) : Date.now();
    seconds.set(stage, (seconds.get(stage) || 0) + Math.max(0, until - Date.parse(event.created_at)) / 1000);
  });
  return seconds;
}
