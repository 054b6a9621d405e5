"use strict";

// Texts become text nodes, so that none of them is ever markup. The one exception is an explanation:
// the server writes it, and escapes what it quotes; and the page's policy lets no script of it run.

const SHOWN = 10;
const find = (id) => document.getElementById(id);
const hasIndex = document.body.dataset.index === "true";
const locked = document.body.dataset.locked === "true";

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, bad = false) {
  find("said").textContent = text && text[0].toUpperCase() + text.slice(1);
  find("said").className = bad ? "bad" : "";
}

async function call(path, body) {
  const headers = {};
  const key = find("secret").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
  }).catch(() => {
    // The browser's own words differ, and none of them names the server.
    throw new Error("the server does not answer: is it still running?");
  });
  const found = await answer.json().catch(() => ({}));
  // The server's words are for programs, which send a header.
  if (answer.status === 401) {
    find("key").hidden = false;
    find("secret").focus();
    throw new Error(`the API key is ${key ? "wrong" : "missing"}: enter it above`);
  }
  if (!answer.ok) throw new Error(found.message || `the server answered ${answer.status}`);
  return found;
}

function paragraphs(text) {
  return text.split(/\n\s*\n/).map((part) => part.trim()).filter(Boolean);
}

function inIndex() {
  return hasIndex && document.querySelector("[name=where]:checked").value === "index";
}

async function search(query) {
  if (inIndex()) {
    const found = await call("v1/search", { query, k: SHOWN });
    return found.results;
  }
  const texts = paragraphs(find("texts").value);
  if (!texts.length) {
    find("texts").focus();
    throw new Error("there is no text to look in: write some above");
  }
  const found = await call("rerank", { query, documents: texts });
  return found.results.map((place) => ({
    text: texts[place.index], score: place.relevance_score, id: `text ${place.index + 1}`,
  }));
}

function result(query, place, number, best) {
  const item = element("li");
  const top = element("div", "top");
  const track = element("span", "track");
  const fill = element("i");
  fill.style.width = `${best > 0 ? Math.max(0, (100 * place.score) / best) : 0}%`;
  track.append(fill);
  const id = element("bdi", "id", place.id);
  id.title = place.id;
  top.append(element("span", "", `${number}.`), element("span", "score", place.score.toFixed(3)), track, id);
  const text = element("p", "text", place.text || "(an empty text)");
  text.dir = "auto";
  item.append(top, text);
  const metadata = JSON.stringify(place.metadata || {});
  if (metadata !== "{}") item.append(element("p", "metadata", metadata));
  item.append(explanation(query, place.text));
  return item;
}

function explanation(query, text) {
  const details = element("details");
  let asked = false;
  const why = element("div", "why");
  // A tree of its own: its style sheet and the page's use some of the same names.
  const shown = why.attachShadow({ mode: "open" });
  details.append(element("summary", "", "Why this score?"), why);
  details.addEventListener("toggle", async () => {
    if (!details.open || asked) return;
    asked = true;
    shown.textContent = "…";
    try {
      const found = await call("rerank", { query, documents: [text], explain: "html" });
      shown.innerHTML = found.results[0].explanation.html;
    } catch (error) {
      shown.textContent = error.message;
      asked = false; // who opens it again asks again
    }
  });
  return details;
}

async function ask() {
  const query = find("query").value.trim();
  if (!query) return;
  const button = document.querySelector("button");
  button.disabled = true;
  say("Searching …");
  const begun = performance.now();
  try {
    const places = await search(query);
    const seconds = ((performance.now() - begun) / 1000).toFixed(2);
    const best = places.length ? places[0].score : 0;
    find("results").replaceChildren(
      ...places.map((place, index) => result(query, place, index + 1, best)),
    );
    const count = places.length === 1 ? "1 result" : `${places.length} results`;
    say(places.length ? `${count} in ${seconds} s` : "Nothing was found.");
  } catch (error) {
    find("results").replaceChildren();
    say(error.message, true);
  }
  button.disabled = false;
}

async function introduce() {
  if (locked && !find("secret").value.trim()) return;
  try {
    const { data } = await call("v1/models");
    const about = [data[0].id, `${data[0].dim} dimensions`, data[0].device];
    if (hasIndex) {
      const { stats } = await call("v1/index");
      about.push(`${stats.documents.toLocaleString("en")} documents`);
    }
    find("model").textContent = about.join(" · ");
  } catch (error) {
    say(error.message, true);
  }
}

function show() {
  find("where").hidden = !hasIndex;
  find("own").hidden = inIndex();
  find("key").hidden = !locked;
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
find("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
find("where").addEventListener("change", show);
find("secret").addEventListener("change", introduce);
show();
introduce();
