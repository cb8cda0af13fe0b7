// @ts-check
/** Stages of a job with their times. */

import { html } from "../../vendor/htm-preact.js";
import { duration } from "../../format.js";
import { STAGES, stageName } from "../../words.js";
import { stageSeconds } from "./progress.js";

/** Stages in order: done, current, still to come. @param {{ job: any, events: any[] }} props */
export function Stages({ job, events }) {
  const spans = stageSeconds(job, events);
  const running = job.state === "running";
  const names = Object.keys(STAGES);
  const shown = names.filter((stage) => spans.has(stage) || (running && isPlanned(job, stage)));
  if (!spans.size && !running) return null;
  return html`<ol class="stages" aria-label="Stages">
    ${shown.map((stage) => {
      const now = running && job.stage === stage;
      const done = spans.has(stage) && !now && (!running || names.indexOf(stage) < names.indexOf(job.stage));
      return html`<li class=${done ? "done" : ""} aria-current=${now ? "step" : undefined}>${stageName(stage)}<span>${spans.has(stage) ? duration(spans.get(stage)) : ""}${now ? ` · now${position(job)}` : ""}</span></li>`;
    })}
  </ol>`;
}

/** @param {any} job */
const position = ({ progress }) => (progress?.layers ? `, ${progress.layer + 1}/${progress.layers}` : "");

/** @param {any} job @param {string} stage */
function isPlanned(job, stage) {
  if (stage === "tournament") return job.compression.method === "auto";
  if (stage === "recover") return Boolean(job.compression.recover);
  if (stage === "evaluate") return Boolean(job.evaluation);
  return true;
}
