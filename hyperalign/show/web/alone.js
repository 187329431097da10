// A study's own page: nothing but the study.

document.documentElement.classList.add("alive");
showStudy(JSON.parse(byId("data").textContent).study);
watchFigures();
figuresSoon(null, null);
