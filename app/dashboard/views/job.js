// @ts-check
/** One job: progress while it runs, results and files afterwards. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, getPage, post, remove, watch } from "../api.js";
import { Action, Copy } from "../components/actions.js";
import { Card, Facts, Fault, Loading, Moment, Note, PageHead, State } from "../components/basics.js";
import { TabPanel, Tabs } from "../components/controls.js";
import { ago, bytes, duration, percent } from "../format.js";
import { methodTitle, reportToShell, useLoaded, useOffer, useTitle, useUploadNames } from "../hooks.js";
import { failureText } from "../problems.js";
import { ENDED, describedModel, requestedAmount, runsIn, settingName, settingValue, stageName, stateName, titleOf } from "../words.js";
import { Files, downloadAll } from "./job/files.js";
import { Layers, Widths } from "./job/layers.js";
import { Labels } from "./job/labels.js";
import { Log, logEntries } from "./job/log.js";
import { workSeconds } from "./job/progress.js";
import { Result } from "./job/result.js";
import { Running, notified } from "./job/running.js";
import { Stages } from "./job/stages.js";
import { NotFound } from "./missing.js";

/** Log lines that are kept; the server stores as many. */
const MOST_LINES = 2000;

/** @param {{ id: string, service: any }} props */
export function Job({ id, service }) {
  const { job, events, lines, error, restart, reload } = useJob(id);
  const uploads = useUploadNames();
  useTitle(job ? heading(job, uploads) : "Job");
  useNotification(job, uploads);
  if (!job && error?.status === 404) return html`<${NotFound} title="There is no such job" link="#/jobs" place="Jobs">It may have been deleted, or belong to another project.<//>`;
  if (!job) return html`<${PageHead} trail=${[["#/jobs", "Jobs"]]} title="Job" /><${Fault} error=${error} />${error ? null : html`<${Loading} what="the job" />`}`;
  const ended = ENDED.includes(job.state);
  return html`<${Head} job=${job} events=${events} uploads=${uploads} service=${service} restart=${restart} reload=${reload} />
    <${Labels} job=${job} reload=${reload} />
    ${job.artifacts_missing ? html`<div class="gap"><${Note} kind="warn" role="status">Files of this job are missing in the artifact store. Restore the store from a backup, or submit the job again.<//></div>` : null}
    ${job.error ? html`<${Failure} job=${job} />` : null}
    ${ended ? html`<${Ended} job=${job} events=${events} lines=${lines} uploads=${uploads} reload=${reload} />` : html`<${Running} job=${job} events=${events} lines=${lines} service=${service} />
      <details class="card settings"><summary>Settings</summary><div class="body"><${Settings} job=${job} uploads=${uploads} /></div></details>`}`;
}

/** The job, its events and its log lines, followed until it ends. @param {string} id */
function useJob(id) {
  const loaded = useLoaded((signal) => get(`/v1/jobs/${id}`, signal), [id]);
  const [live, setLive] = useState(/** @type {any} */ (null));
  const [events, setEvents] = useState(/** @type {any[]} */ ([]));
  const [lines, setLines] = useState(/** @type {any[]} */ ([]));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [restarts, setRestarts] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setEvents([]);
    setLines([]);
    const receive = (/** @type {string} */ kind, /** @type {any} */ data) => {
      if (kind === "live") setLive(data);
      if (kind === "unavailable") reportToShell({ message: "unavailable" });
      if (kind === "available") reportToShell(null);
      if (kind === "log") setLines((old) => added(old, data).slice(-MOST_LINES));
      if (kind !== "event") return;
      setEvents((old) => added(old, data));
      if (data.type !== "progress") loaded.reload();
    };
    watch(id, receive, stop.signal).catch((failure) => {
      setError(failure);
      reportToShell(failure);
    });
    return () => stop.abort();
  }, [id, restarts]);
  const restart = () => {
    setLive(null);
    setRestarts(restarts + 1);
    loaded.reload();
  };
  const ended = loaded.data && ENDED.includes(loaded.data.state);
  return { job: loaded.data && { ...loaded.data, ...(ended ? {} : live) }, events, lines, error: loaded.error || error, restart, reload: loaded.reload };
}

/** Entries with one that may be among the last of them already, as after a reconnection. @param {any[]} entries @param {any} entry */
const added = (entries, entry) => (entries.length && entries[entries.length - 1].sequence >= entry.sequence ? entries : [...entries, entry]);

/** Title of the window, readable from other windows. @param {any} job @param {import("../words.js").Names} uploads */
const heading = (job, uploads) => `${job.state === "running" && job.progress ? percent(job.progress.fraction, 0) : stateName(job.state)} · ${titleOf(job, uploads)}`;

/** Notify once when a watched job ends. @param {any} job @param {import("../words.js").Names} uploads */
function useNotification(job, uploads) {
  const before = useRef(/** @type {string | null} */ (null));
  useEffect(() => {
    if (!job) return;
    const justEnded = before.current !== null && !ENDED.includes(before.current) && ENDED.includes(job.state);
    before.current = job.state;
    if (!justEnded || !notified.delete(job.id)) return;
    new Notification(`${titleOf(job, uploads)}: ${stateName(job.state).toLowerCase()}`, { body: "IntraSlice", icon: "/dashboard/icon.svg" });
  }, [job?.state]);
}

/** @param {{ job: any, events: any[], uploads: import("../words.js").Names, service: any, restart: () => void, reload: () => void }} props */
function Head({ job, events, uploads, service, restart, reload }) {
  const worked = workSeconds(events);
  const about = html`${describedModel(job.model, uploads)} · ${requestedAmount(job.compression)} ${job.compression.ratio === null || job.compression.ratio === undefined ? "" : "removed "}· runs in ${runsIn(job.compression.target)} · <${Moment} moment=${job.created_at} text=${`Created ${ago(job.created_at)}`} />${worked ? ` · ${ENDED.includes(job.state) ? "took" : "worked"} ${duration(worked)}` : ""} · <span class="together"><span class="mono">${job.id}</span> <${Copy} text=${job.id} what="the job's id" /></span>`;
  return html`<${PageHead} trail=${[["#/jobs", "Jobs"], ...(job.sweep_id ? [[`#/sweeps/${job.sweep_id}`, "Sweep"]] : [])]} title=${html`${titleOf(job, uploads)} <${State} state=${job.state} />`} about=${about}>
    <${Buttons} job=${job} mayWrite=${service?.scopes.includes("write")} restart=${restart} reload=${reload} />
  <//>`;
}

/** Address of a job's report, which works without a key for a week. @param {string} id */
const reportLink = async (id) => new URL((await post(`/v1/jobs/${id}/report-links`)).url, location.origin).href;

/** Address of the report in this tab only, for keys that may not make links. @param {string} id */
const reportHere = async (id) => URL.createObjectURL(new Blob([await getPage(`/v1/jobs/${id}/report`)], { type: "text/html" }));

/** @param {{ job: any, mayWrite: boolean, restart: () => void, reload: () => void }} props */
function Buttons({ job, mayWrite, restart, reload }) {
  const verb = (/** @type {string} */ name) => async () => {
    await post(`/v1/jobs/${job.id}/${name}`);
    restart();
  };
  const active = ["queued", "running"].includes(job.state);
  const openReport = async () => window.open(await (mayWrite ? reportLink : reportHere)(job.id), "_blank", "noopener");
  const pin = async () => {
    await post(`/v1/jobs/${job.id}/${job.pinned ? "unpin" : "pin"}`);
    reload();
  };
  // An error that would come again is no reason to retry first.
  const retryKind = job.state === "cancelled" || job.error?.retryable ? "main" : "";
  return html`
    ${active ? html`<${Action} work=${verb("pause")}>Pause<//>` : null}
    ${job.state === "paused" ? html`<${Action} kind="main" work=${verb("resume")}>Resume<//>` : null}
    ${active || job.state === "paused" ? html`<${Action} kind="danger" work=${verb("cancel")}>Cancel<//>` : null}
    ${["failed", "cancelled"].includes(job.state) ? html`<${Action} kind=${retryKind} work=${verb("retry")}>Retry<//>` : null}
    ${job.state === "succeeded" ? html`<${Action} work=${openReport}>Open report<//>` : null}
    <a class=${`button ${job.state === "failed" && !retryKind ? "main" : ""}`} href=${`#/new?like=${job.id}`}>Duplicate</a>
    ${job.state === "succeeded" ? html`<${Download} job=${job} />` : null}
    ${ENDED.includes(job.state) ? html`<details class="menu"><summary aria-label="More actions">More</summary><div class="items">
      ${job.state === "succeeded" && mayWrite ? html`<${Copy} text=${() => reportLink(job.id)}>Copy link to report<//>` : null}
      ${job.state === "succeeded" && !job.expired_at ? html`<${Action} work=${pin}>${job.pinned ? "Unpin files" : "Pin files"}<//>` : null}
      <${Action} kind="danger" confirm="Delete this job and its files?" work=${async () => { await remove(`/v1/jobs/${job.id}`); location.hash = "#/jobs"; }}>Delete<//>
    </div></details>` : null}`;
}

/** @param {{ job: any }} props */
function Download({ job }) {
  const size = job.expired_at ? "" : job.result ? ` · ${bytes(job.result.bytes_after)}` : "";
  return html`<${Action} kind="main" work=${() => downloadAll(job.id)} disabled=${Boolean(job.expired_at)}>Download model${size}<//>`;
}

/** @param {{ job: any }} props */
function Failure({ job }) {
  const { error } = job;
  const advice = error.retryable ? "Another attempt may succeed: press Retry." : "The same settings would fail again: press Duplicate and change them.";
  return html`<div class="gap"><${Note} kind="bad" role="alert" title=${`${failureText(error.code)}.`}>
    ${error.message}${/[.!?]$/.test(error.message) ? "" : "."} ${error.hint ? `${error.hint.charAt(0).toUpperCase()}${error.hint.slice(1)}. ` : ""}${advice}
    <p class="tiny">${[error.stage ? `while: ${stageName(error.stage)}` : "", error.layer === null || error.layer === undefined ? "" : `layer ${error.layer}`, error.module || "", error.field ? settingName(error.field.replaceAll("/", ".").replace(/^\./, "")) : "", `code ${error.code}`].filter(Boolean).join(" · ")}</p>
  <//></div>`;
}

/** @param {{ job: any, events: any[], lines: any[], uploads: import("../words.js").Names, reload: () => void }} props */
function Ended({ job, events, lines, uploads, reload }) {
  const offer = useOffer();
  const succeeded = job.state === "succeeded";
  const report = useLoaded((signal) => (succeeded ? get(`/v1/jobs/${job.id}/report`, signal) : Promise.resolve(null)), [job.id, succeeded]);
  const artifacts = useLoaded((signal) => (succeeded ? get(`/v1/jobs/${job.id}/artifacts`, signal) : Promise.resolve(null)), [job.id, succeeded]);
  const [tab, setTab] = useState("overview");
  const tabs = [
    { value: "overview", title: "Overview" },
    { value: "layers", title: "Layers" },
    ...(succeeded ? [{ value: "files", title: "Files", count: artifacts.data?.data.length }] : []),
    { value: "settings", title: "Settings" },
    { value: "log", title: "Log", count: logEntries(events, lines).length },
  ];
  return html`<${Tabs} label="Parts of the job" id="job" tabs=${tabs} value=${tab} choose=${setTab} />
    <${TabPanel} id="job" value=${tab}>
      ${tab === "overview" && job.result ? html`<${Fault} error=${report.error} /><${Result} job=${job} report=${report.data} events=${events} artifacts=${artifacts} uploads=${uploads} offer=${offer} reload=${reload} />` : null}
      ${tab === "overview" && !job.result ? html`<div class="stack"><${Card} title="Stages"><${Stages} job=${job} events=${events} />${events.some((event) => event.data?.stage) ? null : html`<p class="sub">${job.started_at ? "No stage had begun." : "No worker has started the job."}</p>`}<//><${Widths} job=${job} events=${events} /><${Log} job=${job} events=${events} lines=${lines} /></div>` : null}
      ${tab === "layers" ? html`<${Layers} job=${job} events=${events} />` : null}
      ${tab === "files" ? html`<${Files} id=${job.id} artifacts=${artifacts} />` : null}
      ${tab === "settings" ? html`<${Card} title="Settings"><${Settings} job=${job} uploads=${uploads} /><//>` : null}
      ${tab === "log" ? html`<div class="stack">${job.result ? html`<${Card} title="Stages"><${Stages} job=${job} events=${events} /><//>` : null}<${Log} job=${job} events=${events} lines=${lines} /></div>` : null}
    <//>`;
}

/** @param {{ job: any, uploads: import("../words.js").Names }} props */
function Settings({ job, uploads }) {
  const offer = useOffer();
  /** @param {string} path @param {any} value */
  const shown = (path, value) => (path === "compression.method" ? methodTitle(offer, value) : settingValue(path, path === "model.ref" && job.model.source === "upload" ? uploads.get(value) || value : value, uploads));
  return html`<${Facts} pairs=${flat({ model: job.model, compression: job.compression, evaluation: job.evaluation, priority: job.priority, labels: job.labels })
    .map(([path, value]) => [settingName(path), value === null ? null : shown(path, value)])} />`;
}

/** @param {any} value @param {string} [prefix] @returns {[string, any][]} */
function flat(value, prefix = "") {
  return Object.entries(value || {}).flatMap(([name, field]) =>
    field && typeof field === "object" && !Array.isArray(field)
      ? flat(field, `${prefix}${name}.`)
      : [/** @type {[string, any]} */ ([`${prefix}${name}`, field])],
  );
}
