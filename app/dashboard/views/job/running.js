// @ts-check
/** A job that has not ended: progress, layers, log, and what is expected. */

import { html, useEffect, useState } from "../../vendor/htm-preact.js";
import { post } from "../../api.js";
import { Card, Facts } from "../../components/basics.js";
import { CopiedCode } from "../../components/code.js";
import { bytes, count, duration, percent } from "../../format.js";
import { stageName, stepText } from "../../words.js";
import { Widths } from "./layers.js";
import { Log } from "./log.js";
import { layersPerMinute, leftText, useSteadyEta, workSeconds } from "./progress.js";
import { Stages } from "./stages.js";
import { Waiting } from "./waiting.js";
import { WorkerCard } from "./worker.js";

/** @param {{ job: any, events: any[], lines: any[], service: any }} props */
export function Running({ job, events, lines, service }) {
  const expected = useExpected(job);
  return html`${job.state === "running" ? html`<${Progress} job=${job} events=${events} />` : html`<${Waiting} job=${job} service=${service} />`}
  <div class="two">
    <div class="stack"><${Widths} job=${job} events=${events} /><${Log} job=${job} events=${events} lines=${lines} /></div>
    <aside class="stack" aria-label="About this run">
      <${Expected} sizes=${expected?.estimate} />
      <${WorkerCard} job=${job} service=${service} expected=${expected} />
      <${Work} job=${job} events=${events} />
      <${Elsewhere} job=${job} />
    </aside>
  </div>`;
}

/** @param {{ job: any, events: any[] }} props */
function Progress({ job, events }) {
  const left = useSteadyEta(job);
  const { progress } = job;
  const step = !progress ? "Starting…" : job.stage === "compress" && progress.layers ? `Compressing layer ${progress.layer + 1} of ${progress.layers}` : stageName(job.stage);
  const detail = progress ? stepText(progress, job.stage) : "";
  return html`<section class="card gap" aria-label="Progress"><div class="body stack">
    <p class="spread"><span><span class="fraction">${percent(progress?.fraction ?? 0, 0)}</span> <span class="sub">${step}</span></span>
      <span class="sub small">${!progress ? "" : left === null ? "Time left: estimating…" : html`<b>${leftText(job, left)}</b> left · done by about ${endTime(left)}`}</span></p>
    <progress max="1" value=${progress?.fraction ?? 0} aria-label="Progress"></progress>
    <${Stages} job=${job} events=${events} />
    ${detail ? html`<p class="sub small" role="status">${detail}</p>` : null}
  </div></section>`;
}

/** @param {number} left */
const endTime = (left) => new Date(Date.now() + 1000 * left).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** The validation of a job's settings, with the estimates; null without one. @param {any} job @returns {any} */
function useExpected(job) {
  const [validation, setValidation] = useState(/** @type {any} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    const body = { model: job.model, compression: job.compression, evaluation: job.evaluation };
    post("/v1/jobs:validate", body, {}, stop.signal).then(setValidation, () => setValidation(null));
    return () => stop.abort();
  }, [job.id]);
  return validation;
}

/** What the settings are estimated to give. @param {{ sizes: any }} props `sizes`: null of a model that only workers can read */
function Expected({ sizes }) {
  if (!sizes) return null;
  return html`<${Card} title="Expected result"><${Facts} pairs=${[
    ["Whole model", html`<b>${percent(1 - sizes.params_after / sizes.params_before)} smaller</b>`],
    ["Parameters", `${count(sizes.params_before)} → ${count(sizes.params_after)}`],
    ["Weights", `${bytes(sizes.bytes_before)} → ${bytes(sizes.bytes_after)}`],
    ["Memory while running", bytes(sizes.peak_memory_bytes)],
  ]} /><//>`;
}

/** @param {{ job: any, events: any[] }} props */
function Work({ job, events }) {
  const pace = layersPerMinute(job, events);
  const worked = workSeconds(events);
  return html`<${Card} title="Work"><${Facts} pairs=${[
    ["Worked so far", worked ? duration(worked) : "not yet"],
    ["Pace", pace ? `${pace.toFixed(1)} layers/min` : null],
    ["Attempt", job.attempt ? `${job.attempt} of ${job.max_attempts}` : `none yet, up to ${job.max_attempts}`],
    ["Priority", job.priority],
  ]} /><//>`;
}

/** @param {{ job: any }} props */
const Elsewhere = ({ job }) => html`<${Card} title="Follow elsewhere">
  <div class="stack"><${CopiedCode} text=${`intraslice watch ${job.id} --url ${location.origin}`} label="Command" /><${Notify} job=${job} /></div>
<//>`;

/** @param {{ job: any }} props */
function Notify({ job }) {
  const [on, setOn] = useState(() => notified.has(job.id));
  if (!("Notification" in window)) return html`<p class="hint">Close this tab if you like: the job keeps running.</p>`;
  const ask = async () => {
    if ((await Notification.requestPermission()) !== "granted") return;
    notified.add(job.id);
    setOn(true);
  };
  return html`<p class="hint">${on ? "You will be notified when it ends, while this tab is open." : html`Close this tab if you like: the job keeps running. <button type="button" class="small" onClick=${ask}>Notify me when it ends</button>`}</p>`;
}

/** Jobs whose end is to be notified. @type {Set<string>} */
export const notified = new Set();
