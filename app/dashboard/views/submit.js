// @ts-check
/** A form for a job or a sweep: what would come of it is shown before the button is pressed. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Model, More, Size } from "../form/fields.js";
import { Preview, useChecked } from "../form/preview.js";
import { START, formOf, jobBody, sweepBody } from "../form/request.js";
import { Fault, tellShell, useLoaded } from "../parts.js";

/** @param {{ query: URLSearchParams }} props `like`: a job; `upload`: a model's; `sweep`: try several */
export function Submit({ query }) {
  const [form, setForm] = useState(() => begun(query));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const key = useKey();
  const offer = useLoaded((signal) => get("/v1/models", signal), []).data?.offer;
  const uploads = useLoaded((signal) => get("/v1/uploads?limit=100", signal), []).data?.data;
  const ready = uploads?.filter((/** @type {any} */ one) => one.state === "ready");
  const set = (/** @type {string} */ name, /** @type {any} */ value) => setForm((old) => ({ ...old, [name]: value }));
  useEffect(() => {
    const [first] = offer?.packages || [];
    // The answer may come when the form is being filled in: what is there stays.
    if (first) setForm((old) => (old.source === "package" && !old.ref ? { ...old, ref: first } : old));
  }, [offer]);
  useEffect(() => {
    const like = query.get("like");
    if (like) get(`/v1/jobs/${like}`).then((job) => setForm(formOf(job)), setError);
  }, []);
  const checked = useChecked(form);
  const several = form.size === "sweep";
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const [path, body, view] = several ? ["/v1/sweeps", sweepBody(form), "sweeps"] : ["/v1/jobs", jobBody(form), "jobs"];
    try {
      const made = await post(path, body, { "Idempotency-Key": key(body) });
      location.hash = `#/${view}/${made.id}`;
    } catch (found) {
      setError(found);
      tellShell(found);
    }
    setBusy(false);
  };
  return html`<h1>New job</h1>
    <form class="big" onSubmit=${submit}>
      <div>
        <${Model} form=${form} set=${set} offer=${offer} uploads=${ready} />
        <${Size} form=${form} set=${set} />
        <${More} form=${form} set=${set} uploads=${ready} />
      </div>
      <div class="aside">
        <${Preview} checked=${checked} form=${form} />
        <button class="main" disabled=${busy || !form.ref || Boolean(checked.error)}>${several ? `Compress ${form.ratios.length} times` : "Compress"}</button>
        <${Fault} error=${error} />
      </div>
    </form>`;
}

/** @param {URLSearchParams} query */
function begun(query) {
  const upload = query.get("upload");
  return {
    ...START,
    ...(upload ? { source: "upload", ref: upload } : {}),
    ...(query.has("sweep") ? { size: "sweep" } : {}),
  };
}

/** The same request has the same key, sent as often as may be; a changed one has another. */
function useKey() {
  const kept = useRef({ body: "", key: "" });
  return (/** @type {any} */ body) => {
    const text = JSON.stringify(body);
    if (kept.current.body !== text) {
      kept.current = { body: text, key: `dashboard-${crypto.randomUUID?.() || Math.random()}` };
    }
    return kept.current.key;
  };
}
