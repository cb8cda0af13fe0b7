// @ts-check
/** Name and labels of a job, changed in place. */

import { html, useEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { patch } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Fault } from "../../components/basics.js";
import { reportToShell } from "../../hooks.js";
import { labelsOf } from "../jobs/listing.js";

/** Forms of the bar: their field, what it says, and the largest number of characters. @type {Record<string, { label: string, placeholder: string, most: number }>} */
const FORMS = {
  name: { label: "Name", placeholder: "nightly", most: 256 },
  label: { label: "Label as key=value", placeholder: "team=search", most: 320 },
};

/** @param {{ job: any, reload: () => void }} props */
export function Labels({ job, reload }) {
  const [form, setForm] = useState("");
  const change = async (/** @type {any} */ body) => {
    await patch(`/v1/jobs/${job.id}`, body);
    setForm("");
    reload();
  };
  return html`<div class="chips gap" role="group" aria-label="Name and labels">
    ${labelsOf(job).map(([key, value]) => html`<span class="chip removable" key=${key}><a href=${`#/jobs?label=${encodeURIComponent(`${key}=${value}`)}`} title="Jobs with this label">${key}=${value}</a>
      <${Action} kind="ghost small" label=${`Remove label ${key}`} work=${() => change({ labels: { [key]: null } })}>×<//></span>`)}
    ${form ? html`<${Entry} key=${form} ...${FORMS[form]} value=${form === "name" ? job.labels.name || "" : ""} save=${(/** @type {string} */ text) => change(form === "name" ? renamed(text) : labelled(text))} close=${() => setForm("")} />` : html`
      <button type="button" class="small" onClick=${() => setForm("name")}>Rename</button>
      <button type="button" class="small" onClick=${() => setForm("label")}>Add label</button>`}
  </div>`;
}

/** @param {string} text an empty one removes the name */
const renamed = (text) => ({ name: text.trim() || null });

/** @param {string} text */
function labelled(text) {
  const [key, ...rest] = text.split("=");
  return { labels: { [key.trim()]: rest.join("=").trim() } };
}

/** @param {{ label: string, placeholder: string, most: number, value: string, save: (text: string) => Promise<any>, close: () => void }} props */
function Entry({ label, placeholder, most, value, save, close }) {
  const [text, setText] = useState(value);
  const [error, setError] = useState(/** @type {any} */ (null));
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => field.current?.focus(), []);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      await save(text);
    } catch (failure) {
      setError(failure);
      reportToShell(failure);
    }
  };
  const leave = (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && close();
  return html`<form class="actions" onSubmit=${submit} onKeyDown=${leave}>
    <input class="inline" aria-label=${label} placeholder=${placeholder} maxlength=${most} value=${text} ref=${field} onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
    <button class="small main">Save</button>
    <button type="button" class="small ghost" onClick=${close}>Cancel</button>
    <${Fault} error=${error} />
  </form>`;
}
