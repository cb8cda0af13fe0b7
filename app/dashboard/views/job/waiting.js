// @ts-check
/** Why a job that has not ended does not run. */

import { html } from "../../vendor/htm-preact.js";
import { Note } from "../../components/basics.js";
import { waitingText } from "../../words.js";
import { ordinal } from "../jobs/line.js";

/** @type {Record<string, [string, string]>} states in which no worker works on the job */
const STATES = {
  paused: ["Paused.", "Finished layers are kept. Resume continues from there."],
  pausing: ["Pausing.", "The worker stops within a few seconds."],
  cancelling: ["Cancelling.", "The worker stops within a few seconds."],
};

/** @param {{ job: any, service: any }} props */
export function Waiting({ job, service }) {
  if (job.state !== "queued") {
    const [title, text] = STATES[job.state] || ["", ""];
    return html`<div class="gap"><${Note} kind="warn" title=${title} role="status">${text}<//></div>`;
  }
  const { waiting, queue_position: place } = job;
  const title = place ? `Queued: ${ordinal(place)} in line.` : "Queued.";
  if (waiting) return html`<div class="gap"><${Note} kind="warn" title=${title} role="status">${waitingText(waiting)}<//></div>`;
  if (service?.workers === 0) return html`<div class="gap"><${Note} kind="warn" title=${title} role="status">No workers are running: the job starts once one does.<//></div>`;
  return html`<div class="gap"><${Note} kind="info" title=${title} role="status">
    ${place ? "Counted over all projects of this server. " : ""}The job starts by itself once a <a href="#/workers">worker</a> is free.
  <//></div>`;
}
