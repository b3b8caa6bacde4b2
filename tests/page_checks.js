/* What the tests look at in the page: each function gives plain values. */
({
  /* [ratio, text] of every text that shows, by WCAG's contrast ratio. */
  contrast() {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ground = (node) => {
      if (!node) return rgba(getComputedStyle(document.documentElement).backgroundColor);
      const own = rgba(getComputedStyle(node).backgroundColor);
      return own[3] === 1 ? own : [...over(own, ground(node.parentElement)), 1];
    };
    const found = [];
    const check = (node, colour, text) => {
      let opacity = 1;
      for (let each = node; each; each = each.parentElement) opacity *= getComputedStyle(each).opacity;
      const under = ground(node);
      const [r, g, b, a] = rgba(colour);
      const [one, other] = [luminance(over([r, g, b, a * opacity], under)), luminance(under)];
      const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      found.push([ratio, text.trim().slice(0, 40)]);
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      const shows = walker.currentNode.data.trim() && node.checkVisibility();
      if (!shows || node.closest('script, style, .unseen, :disabled')) continue;
      check(node, getComputedStyle(node).color, walker.currentNode.data);
    }
    for (const field of document.querySelectorAll('input, textarea')) {
      if (!field.checkVisibility()) continue;
      check(field, getComputedStyle(field).color, field.id);
      if (field.placeholder) check(field, getComputedStyle(field, '::placeholder').color, field.placeholder);
    }
    return found;
  },

  /* [tag, id, name] of everything that needs a name. */
  names() {
    const named = 'button, input, textarea, a, img, dialog, ol[id]:not(#turns), main, form, pre';
    return [...document.querySelectorAll(named)].filter((node) => node.checkVisibility()).map((node) => {
      const by = node.getAttribute('aria-labelledby');
      const own = ['BUTTON', 'A'].includes(node.tagName) ? node.textContent : null;
      const name = node.getAttribute('aria-label') ?? (by && document.getElementById(by).textContent)
        ?? node.labels?.[0]?.textContent ?? node.getAttribute('alt') ?? own;
      return [node.tagName, node.id, name];
    });
  },

  ids: () => [...document.querySelectorAll('[id]')].map((node) => node.id),

  described: () => [...document.querySelectorAll('[aria-describedby]')]
    .flatMap((node) => node.getAttribute('aria-describedby').split(' ')),

  /* Buttons smaller than what WCAG 2.2 asks of targets. */
  smallTargets() {
    return [...document.querySelectorAll('button')].filter((node) => {
      const box = node.getBoundingClientRect();
      return node.checkVisibility() && (box.width < 24 || box.height < 24);
    }).map((node) => node.textContent);
  },

  /* What reaches out of the window, besides what scrolls by itself; and whether the page can be moved sideways. */
  tooWide() {
    const width = document.documentElement.clientWidth;
    const out = [...document.querySelectorAll('body *')].filter((node) => {
      const box = node.getBoundingClientRect();
      const scrolls = node.closest('.unseen, #pictures li, #command');
      return !scrolls && node.checkVisibility() && box.width && (box.right > width + 0.5 || box.left < -0.5);
    }).map((node) => node.id || node.className || node.tagName);
    if (document.documentElement.scrollWidth > width || innerWidth !== width) out.push('the page');
    return out;
  },

  textSizes: () => [...document.querySelectorAll('input, textarea')].map((node) => parseFloat(getComputedStyle(node).fontSize)),

  focused() {
    const node = document.activeElement;
    return node.id || node.getAttribute('aria-label') || node.textContent;
  },
})
