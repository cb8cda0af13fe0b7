// @ts-check
/** Names and health of workers. */

import { html } from "../vendor/htm-preact.js";
import { roughly } from "../format.js";

/** Host of a worker, whose id is the host, its process and a random part. @param {any} worker */
export const hostOf = (worker) => worker.id.split(":").slice(0, -2).join(":") || worker.id;

/** @param {{ worker: any }} props */
export function Health({ worker }) {
  if (!worker.silent) return html`<span class="state healthy">Healthy</span>`;
  const seconds = Math.max(0, (Date.now() - Date.parse(worker.seen_at)) / 1000);
  return html`<span class="state alone" title="It is removed if its heartbeats do not return.">Silent for ${roughly(seconds)}</span>`;
}
