// Points that can be reached: by the pointer the nearest one, if it is near; by arrow keys one after the other. What
// becomes of one is in `on`: about(k) names it in lines, tap(k, more), reach(k) and open(k) do what they say.

const wantsMore = (event) => event.modifiers?.shift || event.modifiers?.ctrl;

function listen(place, figure, tip, { shown, x, y, isLog }, on) {
  const scale = (value) => (isLog ? Math.log(value) : value);
  const pixels = (event, k) => {
    const { x_range: across, y_range: up } = figure;
    const dx = ((scale(x[k]) - scale(event.x)) / (scale(across.end) - scale(across.start))) * figure.inner_width;
    const dy = ((y[k] - event.y) / (up.end - up.start)) * figure.inner_height;
    return { dx, dy, far: Math.hypot(dx, dy) };
  };
  const nearest = (event) => {
    let best = null, least = 18;
    for (const k of shown()) {
      const { far } = pixels(event, k);
      if (far < least) [best, least] = [k, far];
    }
    return best;
  };
  figure.on_event("mousemove", (event) => {
    const k = nearest(event);
    place.classList.toggle("pointing", k != null);
    if (k == null) tip.hide();
    else tip.show(on.about(k), event.sx + pixels(event, k).dx, event.sy - pixels(event, k).dy);
  });
  figure.on_event("mouseleave", tip.hide);
  figure.on_event("tap", (event) => {
    const k = nearest(event);
    if (k != null) on.tap(k, wantsMore(event));
  });
}

// Arrow keys go from point to point and say each; Enter opens it.
function walk(place, inOrder, on) {
  let here = -1;
  place.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key], points = inOrder();
    if (step && points.length) {
      here = (here + step + points.length) % points.length;
      announce(on.about(points[here]).join(", "));
      on.reach(points[here]);
    } else if (event.key === "Enter" && points[here] != null) on.open(points[here]);
    else return;
    event.preventDefault();
  };
}
