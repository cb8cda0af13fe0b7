// @ts-check
/** Form for a new job or sweep, with an estimate beside it. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Advanced, Model, Size } from "../form/fields.js";
import { Preview, useEstimate } from "../form/preview.js";
import { START, formOf, jobBody, sweepBody } from "../form/request.js";
import { Fault, reportToShell, useLoaded } from "../parts.js";

/** @param {{ query: URLSearchParams }} props `like`: job to duplicate; `upload`: id of a model; `sweep`: start with a sweep */
export function Submit({ query }) {
  const [form, setForm] = useState(() => initialForm(query));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const key = useKey();
  const offer = useLoaded((signal) => get("/v1/models", signal), []).data?.offer;
  const uploads = useLoaded((signal) => get("/v1/uploads?limit=100", signal), []).data?.data;
  const ready = uploads?.filter((/** @type {any} */ upload) => upload.state === "ready");
  const set = (/** @type {string} */ name, /** @type {any} */ value) => setForm((old) => ({ ...old, [name]: value }));
  useEffect(() => {
    const [first] = offer?.packages || [];
    // The response may arrive while the form is being filled in: keep what was entered.
    if (first) setForm((old) => (old.source === "package" && !old.ref ? { ...old, ref: first } : old));
  }, [offer]);
  useEffect(() => {
    const like = query.get("like");
    if (like) get(`/v1/jobs/${like}`).then((job) => setForm(formOf(job)), setError);
  }, []);
  const estimate = useEstimate(form);
  const isSweep = form.size === "sweep";
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const [path, body, view] = isSweep ? ["/v1/sweeps", sweepBody(form), "sweeps"] : ["/v1/jobs", jobBody(form), "jobs"];
    try {
      const created = await post(path, body, { "Idempotency-Key": key(body) });
      location.hash = `#/${view}/${created.id}`;
    } catch (failure) {
      setError(failure);
      reportToShell(failure);
    }
    setBusy(false);
  };
  return html`<h1>New job</h1>
    <form class="big" onSubmit=${submit}>
      <div>
        <${Model} form=${form} set=${set} offer=${offer} uploads=${ready} />
        <${Size} form=${form} set=${set} offer=${offer} />
        <${Advanced} form=${form} set=${set} offer=${offer} uploads=${ready} />
      </div>
      <div class="aside">
        <${Preview} estimate=${estimate} form=${form} />
        <button class="main" disabled=${busy || !form.ref || Boolean(estimate.error)}>${isSweep ? `Start sweep (${form.ratios.length * form.methods.length} jobs)` : "Start compression"}</button>
        <${Fault} error=${error} />
      </div>
    </form>`;
}

/** @param {URLSearchParams} query */
function initialForm(query) {
  const upload = query.get("upload");
  return {
    ...START,
    ...(upload ? { source: "upload", ref: upload } : {}),
    ...(query.has("sweep") ? { size: "sweep" } : {}),
  };
}

/** Idempotency keys: the same for a repeated request, another for a changed one. */
function useKey() {
  const last = useRef({ body: "", key: "" });
  return (/** @type {any} */ body) => {
    const text = JSON.stringify(body);
    if (last.current.body !== text) {
      last.current = { body: text, key: `dashboard-${crypto.randomUUID?.() || Math.random()}` };
    }
    return last.current.key;
  };
}
