// @ts-check
/** Registry hand-offs of a result: forms that request them, and what became of them. */

import { html, useEffect, useState } from "../../vendor/htm-preact.js";
import { get, post } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Fault, State } from "../../components/basics.js";
import { Field } from "../../components/controls.js";
import { useLoaded } from "../../hooks.js";
import { REGISTRIES, capital } from "../../words.js";

const POLL_SECONDS = 3;

/** Nothing where the server has no registry. @param {{ job: any }} props */
export function HandOffs({ job }) {
  const [busy, setBusy] = useState(false);
  const { data, error, reload } = useLoaded((signal) => get(`/v1/jobs/${job.id}/hand-offs`, signal), [job.id, busy], busy ? POLL_SECONDS : 0);
  const pending = Boolean(data?.data.some((/** @type {any} */ handOff) => handOff.state === "pending"));
  useEffect(() => setBusy(pending), [pending]);
  const latest = (/** @type {any} */ place) => data.data.find((/** @type {any} */ handOff) => handOff.target === place.target);
  return html`<${Fault} error=${error} />
    ${(data?.places || []).map((/** @type {any} */ place) => html`<${Registry} key=${place.target} job=${job} place=${place} latest=${latest(place)} reload=${reload} />`)}`;
}

/** @param {{ job: any, place: any, latest: any, reload: () => void }} props */
function Registry({ job, place, latest, reload }) {
  const [name, setName] = useState(latest?.name || place.name);
  const words = REGISTRIES[place.target];
  const send = async () => {
    await post(`/v1/jobs/${job.id}/hand-offs`, { target: place.target, name: name.trim() });
    reload();
  };
  const id = `registry-${place.target}`;
  return html`<div role="group" aria-label=${words.title}>
    <${Progress} latest=${latest} words=${words} />
    ${job.expired_at ? null : html`<details class="plain"><summary>${words.title}</summary>
      <${Field} id=${id} label=${words.field} hint=${destination(place)}>
        <input id=${id} maxlength="96" value=${name} aria-describedby=${`${id}-hint`} onInput=${(/** @type {any} */ e) => setName(e.target.value)} />
      <//>
      <${Action} kind="main" disabled=${!name.trim() || latest?.state === "pending"} work=${send}>${words.button}<//>
    </details>`}
  </div>`;
}

/** @param {any} place */
const destination = (place) => (place.namespace ? `Below ${place.namespace} at ${place.url}; a new repository is ${place.private ? "private" : "public"}.` : `At ${place.url}; every hand-off of other files makes a new version.`);

/** What became of the latest hand-off. @param {{ latest: any, words: import("../../words.js").Registry }} props */
function Progress({ latest, words }) {
  if (!latest) return null;
  if (latest.state === "done") return html`<p class="small"><${State} state="done" /> ${words.done} <a href=${latest.url} rel="noopener">${latest.reference || latest.url}</a></p>`;
  if (latest.state === "failed") return html`<div class="fault small" role="alert"><p><${State} state="failed" /> ${latest.attempts === 1 ? "It was tried once." : `It was tried ${latest.attempts} times.`} ${explained(latest.error)}</p></div>`;
  return html`<p class="small" role="status"><${State} state="pending" /> ${waiting(latest)}</p>`;
}

/** @param {any} latest a pending hand-off */
function waiting(latest) {
  if (!latest.attempts) return "Waiting for a worker.";
  if (!latest.error) return "Sending the files …";
  return `The last attempt failed. ${explained(latest.error)} The next one is at ${new Date(latest.next_try_at).toLocaleTimeString()}.`;
}

/** @param {string | null} error */
const explained = (error) => (error ? `${capital(error)}${/[.!?]$/.test(error) ? "" : "."}` : "");
