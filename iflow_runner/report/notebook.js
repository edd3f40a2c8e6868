// In the frame of a notebook: tells the page around it how high it is and where its links lead.
"use strict";
(() => {
  // each message has the height of the page, which is not that of the window
  const height = () => Math.ceil(document.documentElement.getBoundingClientRect().height);
  const tell = message => parent.postMessage({height: height(), ...message}, "*");
  const decode = text => { try { return decodeURIComponent(text); } catch { return text; } };
  // A link's kind and place: another site, or a notebook ("" is this one) and a heading in it.
  const parse = link => {
    const href = link.getAttribute("href");
    if (/^https?:\/\//i.test(href)) return {visit: href};
    const [, file, heading] = /^([^#]*)#?(.*)$/s.exec(href);
    if (file && !/^[^/:]+\.ipynb$/.test(file)) return null; // a file that is not in the page
    return {notebook: decode(file).replace(/\.ipynb$/, ""), heading: decode(heading)};
  };

  const show = heading => {
    const target = document.getElementById(heading);
    if (target) tell({top: target.getBoundingClientRect().top});
  };
  addEventListener("message", ({source, data}) => {
    if (source !== parent) return;
    for (const link of data.names ? document.querySelectorAll("a[href]") : []) {
      const place = parse(link);
      if (place && (place.visit || !place.notebook || data.names.includes(place.notebook))) continue;
      link.removeAttribute("href"); // it leads nowhere in the page: its text stays
    }
    if (data.heading) show(data.heading);
  });
  const follow = event => {
    const link = event.target.closest?.("a[href]"), place = link && parse(link);
    if (link) event.preventDefault();
    if (place && event.button < 2) tell(place);
  };
  addEventListener("click", follow);
  addEventListener("auxclick", follow);
  addEventListener("load", () => tell({ready: true}));
  new ResizeObserver(() => tell({})).observe(document.documentElement);
})();
