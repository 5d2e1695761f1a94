// Sorts and filters the table of slides. Without it the page is complete, ranked by score.
(() => {
  "use strict";
  // Of hundreds of slides, thousands of pictures would keep the page from opening: those of
  // the regions stand in templates until one looks at their slide.
  const fill = (details) => {
    const template = details.querySelector("template");
    if (template) template.replaceWith(template.content);
  };
  for (const details of document.querySelectorAll("details.late")) {
    details.addEventListener("toggle", () => details.open && fill(details));
  }
  const openTarget = () => {
    // An address can name a slide, as that of the viewer does: `#name=tumor_001`.
    const named = /^#name=(.+)$/.exec(location.hash);
    if (named) {
      let name = named[1];
      try { name = decodeURIComponent(name); } catch { /* as it is */ }
      const found = [...document.querySelectorAll("article[data-slide]")].find((one) => one.dataset.slide === name);
      if (found) location.replace(`#${found.id}`);
      return;
    }
    const article = /^#slide-\d+$/.test(location.hash) && document.querySelector(location.hash);
    const details = article && article.querySelector("details.late");
    if (!details) return;
    fill(details);
    details.open = true;
  };
  window.addEventListener("hashchange", openTarget);
  openTarget();

  // A page that was opened from a disk knows where it is now: its commands run from anywhere. The
  // shells of Windows quote otherwise, and have no way to quote some characters that both understand.
  if (location.protocol === "file:") {
    const windows = location.host !== "" || /^\/[A-Za-z]:/.test(location.pathname);
    const plain = windows ? /^[\w.:/-]+$/ : /^[\w@%+=:,./-]+$/;
    const quotable = (text) => !windows || /^[\p{L}\p{M}\p{N}_ .@+=:,/-]+$/u.test(text);
    const quoted = (text) => plain.test(text) ? text : windows ? `"${text}"` : `'${text.replaceAll("'", `'"'"'`)}'`;
    for (const folder of document.querySelectorAll(".folder")) {
      const found = decodeURIComponent(new URL(`${folder.dataset.folder.split("/").map(encodeURIComponent).join("/")}/`, location).pathname).slice(0, -1);
      const path = location.host ? `//${location.host}${found}` : windows ? found.slice(1) : found;
      const command = folder.closest("code");
      const name = command.querySelector(".slide-name");
      const slide = command.closest("article")?.dataset.slide;
      if (!quotable(path)) {
        if (name) command.replaceWith("open the viewer and choose the slide");
        else command.replaceWith("wsiad view with the path of the results");
      } else if (name && !quotable(slide)) {
        command.replaceWith("open the viewer and choose the slide");
      } else {
        folder.textContent = quoted(path);
        if (name) name.textContent = quoted(slide);
      }
    }
    document.getElementById("where")?.remove();
  }

  // On paper nothing can be opened: counts and configuration are printed. The pictures of what
  // was scored, and regions that nobody has opened, would be as many pages again.
  const folded = [...document.querySelectorAll("details:not([class])")];
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = folded.filter((details) => !details.open);
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    opened = [];
  });

  const table = document.getElementById("ranking");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];

  // Sort values stand in data-value; an empty one, "nothing known", goes last either way.
  const sort = (column, descending) => {
    const numeric = heads[column].classList.contains("number");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
    heads.forEach((head, index) => {
      if (index !== column) head.removeAttribute("aria-sort");
    });
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  heads.forEach((head, column) => {
    if ("fixed" in head.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.classList.contains("number") && column > 0;
      sort(column, now ? now === "ascending" : first);
    });
  });

  const form = document.createElement("div");
  form.className = "filter";
  form.innerHTML =
    '<label for="filter">Filter slides</label><input id="filter" type="search" ' +
    'placeholder="name, label or status"><span class="muted small" role="status"></span>';
  table.closest(".scroll").before(form);
  const shown = form.querySelector("[role=status]");
  form.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      row.hidden = !row.dataset.search.toLowerCase().includes(wanted);
      count += !row.hidden;
      const section = document.getElementById(row.dataset.section);
      if (section) section.hidden = row.hidden;
    }
    shown.textContent = wanted ? `${count} of ${body.rows.length} shown` : "";
  });
})();
