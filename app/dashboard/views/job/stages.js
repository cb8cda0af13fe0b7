// @ts-check
/** Stages of a job with their times. */

import { html } from "../../vendor/htm-preact.js";
import { duration } from "../../format.js";
import { STAGES, stageName } from "../../words.js";
import { stageSeconds } from "./progress.js";

/** Class and word of the stage in which a job stopped, by the job's state. @type {Record<string, [string, string]>} */
const ENDS = { failed: ["failed", "failed"], cancelled: ["stopped", "cancelled"] };

/**
 * Stages in order: done, current or the one in which the job stopped, still to come.
 * @param {{ job: any, events: any[] }} props
 */
export function Stages({ job, events }) {
  const spans = stageSeconds(job, events);
  const running = job.state === "running";
  const names = Object.keys(STAGES);
  const shown = names.filter((stage) => spans.has(stage) || (running && isPlanned(job, stage)));
  if (!spans.size && !running) return null;
  const end = ENDS[job.state];
  const last = end && lastStage(job, names, spans);
  return html`<ol class="stages" aria-label="Stages">
    ${shown.map((stage) => {
      const now = running && job.stage === stage;
      if (stage === last) return html`<li class=${end[0]}>${stageName(stage)}<span>${duration(spans.get(stage))} · ${end[1]}</span></li>`;
      const done = spans.has(stage) && !now && (!running || names.indexOf(stage) < names.indexOf(job.stage));
      return html`<li class=${done ? "done" : ""} aria-current=${now ? "step" : undefined}>${stageName(stage)}<span>${spans.has(stage) ? duration(spans.get(stage)) : ""}${now ? " · now" : ""}</span></li>`;
    })}
  </ol>`;
}

/** The stage in which a job stopped: the one of its error, or else the last that began. @param {any} job @param {string[]} names @param {Map<string, number>} spans */
const lastStage = (job, names, spans) => (spans.has(job.error?.stage) ? job.error.stage : names.filter((stage) => spans.has(stage)).pop());

/** @param {any} job @param {string} stage */
function isPlanned(job, stage) {
  if (stage === "tournament") return job.compression.method === "auto";
  if (stage === "recover") return Boolean(job.compression.recover);
  if (stage === "evaluate") return Boolean(job.evaluation);
  return true;
}
