// @ts-check
/** The worker that runs a job. */

import { html } from "../../vendor/htm-preact.js";
import { Card, Facts } from "../../components/basics.js";
import { bytes } from "../../format.js";
import { Health, hostOf } from "../../components/workers.js";

/** Worker and device that run a job; null if none is known to. @param {any} job @param {any[]} fleet */
export function placeOf(job, fleet) {
  for (const worker of fleet) {
    for (const device of worker.devices) if (device.jobs.some((/** @type {any} */ running) => running.job_id === job.id)) return { worker, device };
  }
  return null;
}

/** @param {{ job: any, service: any }} props */
export function WorkerCard({ job, service }) {
  const place = placeOf(job, service?.fleet || []);
  if (!place) return null;
  const { worker, device } = place;
  return html`<${Card} title="Worker" aside=${html`<${Health} worker=${worker} />`}>
    <${Facts} pairs=${[
      ["Host", html`<a class="mono" href="#/workers" title=${worker.id}>${hostOf(worker)}</a>`],
      ["Device", device.name],
      [device.kind === "gpu" ? "Memory of the GPU" : "Memory of the host", bytes(device.memory_bytes)],
      ["Memory of the host", device.kind === "gpu" ? bytes(worker.host_memory_bytes) : null],
    ]} />
  <//>`;
}
