// @ts-check
/** Views of what does not exist. */

import { html } from "../vendor/htm-preact.js";
import { PageHead } from "../components/basics.js";

/** @param {{ title?: string, link?: string, place?: string, children?: any }} props */
export const NotFound = ({ title = "There is no such page", link = "#/jobs", place = "Jobs", children }) => html`<${PageHead} title=${title} />
  <p class="sub gap">${children || "The address may be mistyped or of another version."}</p>
  <a class="button main" href=${link}>Go to ${place}</a>`;
