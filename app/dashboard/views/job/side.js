// @ts-check
/** Cards beside a result: how to deploy it, what was checked, where it comes from. */

import { html } from "../../vendor/htm-preact.js";
import { post } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card, Facts } from "../../components/basics.js";
import { CopiedCode } from "../../components/code.js";
import { number } from "../../format.js";
import { methodTitle } from "../../hooks.js";
import { allocationName, describedModel, mixtureName, sentence } from "../../words.js";
import { HandOffs } from "./hand-offs.js";

/** @param {{ job: any, name: string }} props `name`: of the files' directory */
export function Deploy({ job, name }) {
  return html`<${Card} title="Deploy">
    <div class="stack">
      <${HandOffs} job=${job} />
      <p class="hint">After the download, from a terminal:</p>
      <${CopiedCode} text=${`intraslice push ./${name} --repo ORGANISATION/${name}`} label="Push to a model hub" />
      <${CopiedCode} text=${`intraslice register ./${name} --mlflow http://localhost:5000`} label="Register in MLflow" />
    </div>
  <//>`;
}

/** @type {Record<string, string>} loaders of `verified.loaded_by` */
const LOADERS = { checkpoint: "transformers with its own code", package: "transformers with our package", "llama.cpp": "llama.cpp" };

/** @param {{ report: any, files: any[] | null }} props */
export function Checks({ report, files }) {
  const verified = report.verified || [];
  const names = new Set((files || []).map((file) => file.name));
  const checks = [
    ...verified.map((/** @type {any} */ check) => `${check.files} loads in a clean process: ${check.loaded_by.map((/** @type {string} */ name) => LOADERS[name] || name).join(", ")}`),
    ...(verified.length ? [`Same log-probabilities as in memory (largest difference ${number(Math.max(...verified.map((/** @type {any} */ check) => check.max_abs_difference)), 2)} nats)`] : []),
    ...(names.has("manifest.json") ? [`SHA-256 of every file in the manifest${names.has("manifest.json.sig") ? ", signed" : ""}`] : []),
  ];
  if (!checks.length) return null;
  return html`<${Card} title="Checks" aside=${html`<span class="state ready">${checks.length} passed</span>`}>
    <ul class="checks small">${checks.map((check) => html`<li>${check}</li>`)}</ul>
    ${(report.warnings || []).map((/** @type {string} */ warning) => html`<p class="hint">${sentence(warning)}</p>`)}
  <//>`;
}

/** @param {{ job: any, report: any, uploads: import("../../words.js").Names, offer: any, reload: () => void }} props */
export function Provenance({ job, report, uploads, offer, reload }) {
  const { calibration } = job.compression;
  const pin = async () => {
    await post(`/v1/jobs/${job.id}/${job.pinned ? "unpin" : "pin"}`);
    reload();
  };
  const until = job.expired_at ? `removed on ${new Date(job.expired_at).toLocaleDateString()}` : job.pinned ? "kept until unpinned" : job.expires_at ? `kept until ${new Date(job.expires_at).toLocaleDateString()}` : "kept without a time limit";
  return html`<${Card} title="Provenance">
    <${Facts} pairs=${[
      ["Base model", describedModel(job.model, uploads)],
      ["Licence", report?.base_licence],
      ["Method", report ? `${methodTitle(offer, report.method)}, IntraSlice ${report.engine_version}${report.allocation ? `, allocation: ${allocationName(report.allocation.allocator)}` : ""}` : methodTitle(offer, job.compression.method)],
      ["Calibration", `${calibration.samples} × ${calibration.sequence_length} tokens: ${mixtureName(calibration.source, uploads)}`],
      ["Device", report?.device],
      ["Files", html`${until} ${job.expired_at ? null : html`<${Action} kind="small" work=${pin}>${job.pinned ? "Unpin" : "Pin"}<//>`}`],
    ]} />
  <//>`;
}
