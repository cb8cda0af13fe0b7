// @ts-check
/** The worker that runs a job. */

import { html } from "../../vendor/htm-preact.js";
import { Bar, Card, Facts } from "../../components/basics.js";
import { bytes } from "../../format.js";
import { Health, hostOf } from "../../components/workers.js";

/** Worker and device that run a job; null if none is known to. @param {any} job @param {any[]} fleet */
export function placeOf(job, fleet) {
  for (const worker of fleet) {
    for (const device of worker.devices) if (device.jobs.some((/** @type {any} */ running) => running.job_id === job.id)) return { worker, device };
  }
  return null;
}

/** @param {{ job: any, service: any, expected: any }} props `expected`: validation of the job's settings, or null */
export function WorkerCard({ job, service, expected }) {
  const place = placeOf(job, service?.fleet || []);
  if (!place) return null;
  const { worker, device } = place;
  return html`<${Card} title="Worker" aside=${html`<${Health} worker=${worker} />`}><div class="stack">
    <${Facts} pairs=${[
      ["Host", html`<a class="mono" href="#/workers" title=${worker.id}>${hostOf(worker)}</a>`],
      ["Device", device.name],
      [device.kind === "gpu" ? "Memory of the GPU" : "Memory of the host", bytes(device.memory_bytes)],
      ["Memory of the host", device.kind === "gpu" ? bytes(worker.host_memory_bytes) : null],
    ]} />
    <${MemoryUse} progress=${job.progress} expected=${expected} device=${device} host=${worker.host_memory_bytes} />
  </div><//>`;
}

/**
 * Memory that the job holds now: of the GPU where it computes on one, else of the host.
 * @param {{ progress: any, expected: any, device: any, host: number }} props `expected`: validation of the job's settings, or null; `host`: memory of the worker's host, in bytes
 */
function MemoryUse({ progress, expected, device, host }) {
  const onGpu = Number.isFinite(progress?.gpu_memory_bytes);
  const held = onGpu ? progress.gpu_memory_bytes : progress?.memory_bytes;
  if (!held) return null;
  const most = onGpu ? device.memory_bytes : host;
  // Without memory of its GPU, a job has yet to load the model or runs on the host's CPU: neither need is certain.
  const least = onGpu ? expected?.gpu_bytes : device.kind === "cpu" ? expected?.estimate?.least_memory_bytes : null;
  const shown = `${bytes(held)} of ${bytes(most)}`;
  return html`<div><p class="spread small"><span class="sub">${onGpu ? "Held on the GPU" : "Held by the job"}</span><span>${shown}</span></p>
    <${Bar} part=${held / most} label=${shown} />
    ${onGpu && progress.memory_bytes ? html`<p class="hint">and ${bytes(progress.memory_bytes)} of the host</p>` : null}
    ${least ? html`<p class="hint">needs at least ${bytes(least)}${onGpu ? " of the GPU" : ""}</p>` : null}</div>`;
}
