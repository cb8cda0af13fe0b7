// @ts-check
/** Workers of the deployment, their devices, and what each does. */

import { html } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Card, Empty, Facts, Fault, Loading, Moment, Note, PageHead } from "../components/basics.js";
import { Table } from "../components/table.js";
import { ago, bytes, percent } from "../format.js";
import { useLoaded } from "../hooks.js";
import { stageName, stateName } from "../words.js";
import { Health, hostOf } from "../components/workers.js";

const SECONDS = 5;
const COLUMNS = ["Device", "Memory\u00a0", "Number formats", "Doing"];

export function Workers() {
  const { data, error } = useLoaded((signal) => get("/v1/service", signal), [], SECONDS);
  return html`<${PageHead} title="Workers" about="Processes that run jobs, on this machine or others. A worker appears here while it sends heartbeats." />
    <${Fault} error=${error} />
    ${data ? html`<${Fleet} service=${data} />` : error ? null : html`<${Loading} what="the workers" />`}`;
}

/** @param {{ service: any }} props */
function Fleet({ service }) {
  const { fleet } = service;
  const unlisted = (service.workers || 0) - fleet.length;
  if (!fleet.length && unlisted <= 0) return html`<${Empty} title="No workers are running">Jobs stay queued until one is started: <span class="mono">intraslice worker</span>.<//>`;
  return html`<div class="stack">
    ${unlisted > 0 ? html`<${Note} kind="info" role="status">${unlisted} ${unlisted === 1 ? "worker of an earlier release does" : "workers of an earlier release do"} not register devices.<//>` : null}
    ${fleet.map((/** @type {any} */ worker) => html`<${Worker} key=${worker.id} worker=${worker} />`)}
  </div>`;
}

/** @param {{ worker: any }} props */
const Worker = ({ worker }) => html`<${Card} title=${hostOf(worker)} label=${`Worker ${worker.id}`} aside=${html`<${Health} worker=${worker} />`}>
  <div class="stack">
    <${Table} label=${`Devices of ${worker.id}`} columns=${COLUMNS} empty="It has registered no devices."
      rows=${worker.devices.map((/** @type {any} */ device) => [device.name, bytes(device.memory_bytes), device.dtypes.join(", "), html`<${Doing} device=${device} />`])} />
    <${Facts} pairs=${[
      ["Process", html`<span class="mono">${worker.id}</span>`],
      ["Memory of the host", bytes(worker.host_memory_bytes)],
      ["Started", html`<${Moment} moment=${worker.started_at} text=${ago(worker.started_at)} />`],
      ["Last heartbeat", html`<${Moment} moment=${worker.seen_at} text=${ago(worker.seen_at)} />`],
      ["Version", worker.version],
    ]} />
  </div>
<//>`;

/** @param {{ device: any }} props */
function Doing({ device }) {
  if (!device.jobs.length) return html`<span class="dim">Idle</span>`;
  return html`<ul class="bare">${device.jobs.map((/** @type {any} */ running) => html`<li>${doing(running)}</li>`)}</ul>`;
}

/** Memory that a job holds. @param {any} running */
function held({ memory_bytes: host, gpu_memory_bytes: gpu }) {
  const parts = [gpu ? `${bytes(gpu)} of the GPU` : "", host ? `${bytes(host)} of the host` : ""].filter(Boolean);
  return parts.length ? `, holds ${parts.join(" and ")}` : "";
}

/** @param {any} running a job that a device runs; one of another project has no id */
function doing(running) {
  if (!running.job_id) return "A job of another project";
  const step = running.state === "running" ? (running.stage ? stageName(running.stage) : "Starting") : stateName(running.state);
  const fraction = running.fraction === null || running.fraction === undefined ? "" : `, ${percent(running.fraction, 0)}`;
  return html`<a class="mono" href=${`#/jobs/${running.job_id}`}>${running.job_id}</a> <span class="dim">${step}${fraction}${held(running)}</span>`;
}
