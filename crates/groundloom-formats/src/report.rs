//! The report of a run: one HTML file with the funnel and the photographs with their boxes.
//!
//! The page stands alone: no request leaves it, it has no script, and its content security policy allows neither. What comes from data (captions are hostile) is escaped in one place.
//! Hovering or focusing a phrase brings its boxes forward by style sheet alone. Like the card it holds neither a clock nor a host name.

mod html;
mod marks;
mod thumbnail;

use std::{collections::BTreeMap, fmt::Write as _};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use groundloom_data::{
    MediaView,
    columns::{ROW_ID, is_media},
    funnel::StageCounts,
};

use crate::{
    FormatError,
    card::{count, words},
    funnel_steps::{Step, steps},
    hugging_face::media_kind,
};
use html::{Text, excerpt, fill};
use marks::{Mark, marks, segments};
use thumbnail::thumbnail;

/// Rows in the gallery unless told otherwise.
pub const GALLERY_ROWS: usize = 48;

/// Colours of phrases in the style sheet; phrase *i* of a row has colour *i* modulo this.
const COLOURS: usize = 10;

/// Most characters of a caption, phrases of a row and boxes of a phrase that a card shows: one odd row must not make the page unreadable.
const CARD_CHARACTERS: usize = 4000;
const CARD_PHRASES: usize = 60;
const CARD_BOXES: usize = 50;

/// What a report says.
#[derive(Debug, Clone, Default)]
pub struct ReportFacts {
    /// The pipeline's name.
    pub title: String,
    /// What the pipeline file says about itself, or empty.
    pub description: String,
    /// Rows in the data set.
    pub rows: u64,
    /// What each stage did with the rows, in order.
    pub funnel: Vec<StageCounts>,
    /// The sources, each a line: name, type and location as the pipeline file gives it.
    pub sources: Vec<String>,
    /// Rows in quarantine by code.
    pub quarantined: BTreeMap<String, u64>,
    /// Sentences from the stages: where this run differs from the recipe's authors.
    pub notes: Vec<String>,
    /// Weights that decided the output, as `name@sha256`.
    pub models: Vec<String>,
    /// The pipeline file, secrets redacted.
    pub pipeline: String,
    /// Fingerprint of the run.
    pub fingerprint: String,
    /// Version of Groundloom.
    pub version: String,
}

/// The rows that a gallery of `limit` shows of a data set of `rows`: evenly over the data set, the first one included. Ascending.
pub fn gallery_rows(rows: u64, limit: usize) -> Vec<u64> {
    let n = rows.min(limit as u64);
    (0..n).map(|i| (u128::from(i) * u128::from(rows) / u128::from(n)) as u64).collect()
}

/// Renders the page. The gallery shows up to [`GALLERY_ROWS`] rows of `samples`, evenly over them; the batches may have any columns: pictures come from the first image column,
/// text from `caption` or else the first text column, boxes from `boxes` (with `chunks` and `expressions` where they are) or else from `ref_exps`.
///
/// # Errors
/// A [`FormatError::Column`] when a sample's column cannot be read as its own schema says.
pub fn render(facts: &ReportFacts, samples: &[RecordBatch]) -> Result<String, FormatError> {
    let total: u64 = samples.iter().map(|batch| batch.num_rows() as u64).sum();
    let mut cards = Vec::new();
    for at in gallery_rows(total, GALLERY_ROWS) {
        if let Some((batch, row)) = locate(samples, at) {
            cards.push(Card::read(batch, row)?);
        }
    }
    let funnel = steps(&facts.funnel);
    Ok(fill(include_str!("../templates/report.html"), |place, page| match place {
        "title" => push(page, Text(&facts.title)),
        "style" => page.push_str(include_str!("../templates/report.css")),
        "rules" => phrase_rules(page, cards.iter().map(|c| c.marks.len()).max().unwrap_or(0)),
        "description" if !facts.description.trim().is_empty() => {
            push(page, format_args!("<p class=\"lead\">{}</p>", Text(facts.description.trim())))
        }
        "figures" => figures(page, facts, &funnel),
        "funnel" => funnel_chart(page, facts, &funnel),
        "losses" => losses(page, facts, &funnel),
        "notes" => notes(page, facts),
        "controls" => controls(page, &cards),
        "gallery" => gallery(page, facts, &cards),
        "origin" => origin(page, facts),
        _ => {}
    }))
}

fn push(page: &mut String, text: impl std::fmt::Display) {
    let _ = write!(page, "{text}");
}

fn locate(samples: &[RecordBatch], mut at: u64) -> Option<(&RecordBatch, usize)> {
    for batch in samples {
        let rows = batch.num_rows() as u64;
        if at < rows {
            return Some((batch, usize::try_from(at).ok()?));
        }
        at -= rows;
    }
    None
}

// ------------------------------------------------------------------------------------------------ figures and funnel

fn figures(page: &mut String, facts: &ReportFacts, funnel: &[Step<'_>]) {
    let read = read_rows(facts, funnel);
    let dropped: u64 = funnel.iter().map(|s| s.dropped).sum();
    let quarantined: u64 = facts.quarantined.values().sum();
    let mut figure = |value: String, label: &str, class: &str| {
        push(page, format_args!("<div class=\"figure {class}\"><strong>{value}</strong><span>{label}</span></div>"));
    };
    figure(count(read), "rows read", "");
    figure(count(facts.rows), &format!("rows kept, {}", Text(&percent(facts.rows, read))), "kept");
    figure(count(dropped), "dropped by a stage", "dropped");
    figure(count(quarantined), "in quarantine", "failed");
}

/// Rows that entered the pipeline.
fn read_rows(facts: &ReportFacts, funnel: &[Step<'_>]) -> u64 {
    funnel.first().map_or(facts.rows + facts.quarantined.values().sum::<u64>(), |s| s.reached)
}

fn funnel_chart(page: &mut String, facts: &ReportFacts, funnel: &[Step<'_>]) {
    let widest = funnel.iter().map(|s| s.reached).max().unwrap_or(0).max(1);
    let read = read_rows(facts, funnel);
    if !facts.sources.is_empty() {
        let sources: Vec<String> = facts.sources.iter().map(|s| Text(s).to_string()).collect();
        push(page, format_args!("<p class=\"sources\">{}</p>", sources.join("<br>")));
    }
    page.push_str("<ol class=\"funnel\">");
    for step in funnel {
        let stage = step.stage;
        let share = |rows: u64| rows as f64 * 100.0 / widest as f64;
        push(
            page,
            format_args!(
                "<li><div class=\"stage\"><b>{}</b><span>{}</span></div>\
             <div class=\"bar\" role=\"img\" aria-label=\"{} rows on, {} dropped, {} quarantined\">",
                Text(&stage.stage),
                Text(&stage.kind),
                count(step.passed),
                count(step.dropped),
                count(step.failed),
            ),
        );
        for (class, rows) in [("kept", step.passed), ("failed", step.failed), ("dropped", step.dropped)] {
            if rows > 0 {
                push(page, format_args!("<i class=\"{class}\" style=\"width:{:.3}%\"></i>", share(rows)));
            }
        }
        push(
            page,
            format_args!(
                "</div><div class=\"rows\"><b>{}</b><span>{}</span></div>",
                count(step.passed),
                Text(&percent(step.passed, read))
            ),
        );
        page.push_str("<ul class=\"counts\">");
        if step.dropped > 0 {
            let reason = if stage.reason.is_empty() { "dropped".to_owned() } else { words(&stage.reason) };
            push(page, format_args!("<li class=\"dropped\"><b>−{}</b> {}</li>", count(step.dropped), Text(&reason)));
        }
        for (code, n) in &stage.failed {
            push(page, format_args!("<li class=\"failed\"><b>−{}</b> {}</li>", count(*n), Text(&words(code))));
        }
        for (what, n) in &stage.counts {
            push(page, format_args!("<li><b>{}</b> {}</li>", count(*n), Text(&words(what))));
        }
        page.push_str("</ul></li>");
    }
    page.push_str("</ol>");
}

/// Every reason for which rows were lost, the largest first.
fn losses(page: &mut String, facts: &ReportFacts, funnel: &[Step<'_>]) {
    let mut losses: Vec<(u64, &str, String, &str)> = funnel
        .iter()
        .filter(|s| s.dropped > 0)
        .map(|s| {
            let reason = if s.stage.reason.is_empty() { "no reason given" } else { &s.stage.reason };
            (s.dropped, "dropped", words(reason), s.stage.stage.as_str())
        })
        .collect();
    losses.extend(facts.quarantined.iter().map(|(code, n)| {
        let stage =
            funnel.iter().find(|s| s.stage.failed.contains_key(code)).map_or("source", |s| s.stage.stage.as_str());
        (*n, "failed", words(code), stage)
    }));
    losses.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.2.cmp(&b.2)));
    if losses.is_empty() {
        page.push_str("<p>No row was lost.</p>");
        return;
    }
    let most = losses.first().map_or(1, |l| l.0).max(1);
    page.push_str("<table class=\"losses\"><thead><tr><th>reason</th><th>stage</th><th>went</th><th class=\"n\">rows</th><th></th></tr></thead><tbody>");
    for (n, class, reason, stage) in &losses {
        let went = if *class == "failed" { "to quarantine" } else { "dropped" };
        push(
            page,
            format_args!(
                "<tr><td>{}</td><td><code>{}</code></td><td>{went}</td><td class=\"n\">{}</td><td class=\"share\"><i class=\"{class}\" style=\"width:{:.3}%\"></i></td></tr>",
                Text(reason),
                Text(stage),
                count(*n),
                *n as f64 * 100.0 / most as f64,
            ),
        );
    }
    page.push_str("</tbody></table>");
}

/// `87 %`, with a decimal where whole numbers would mislead.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    match percent {
        p if part == 0 || part == whole || (10.0..=99.0).contains(&p) => format!("{p:.0} %"),
        p if p < 0.1 => "< 0.1 %".to_owned(),
        p if p > 99.9 && part < whole => "> 99.9 %".to_owned(),
        p => format!("{p:.1} %"),
    }
}

fn notes(page: &mut String, facts: &ReportFacts) {
    if facts.notes.is_empty() {
        return;
    }
    page.push_str("<section><h2>How this run differs from the recipe</h2><ul class=\"notes\">");
    for note in &facts.notes {
        push(page, format_args!("<li>{}</li>", Text(note)));
    }
    page.push_str("</ul></section>");
}

fn origin(page: &mut String, facts: &ReportFacts) {
    if !facts.models.is_empty() {
        page.push_str("<h3>Models</h3><ul class=\"models\">");
        for model in &facts.models {
            let (name, hash) = model.rsplit_once('@').unwrap_or((model, ""));
            push(page, format_args!("<li>{} <code>{}</code></li>", Text(name), Text(hash)));
        }
        page.push_str("</ul>");
    }
    if !facts.pipeline.trim().is_empty() {
        push(
            page,
            format_args!(
                "<details><summary>Pipeline file</summary><pre>{}</pre></details>",
                Text(facts.pipeline.trim_end())
            ),
        );
    }
    push(
        page,
        format_args!(
            "<p class=\"small\">Groundloom {} · fingerprint <code>{}</code></p>",
            Text(&facts.version),
            Text(&facts.fingerprint)
        ),
    );
}

// ------------------------------------------------------------------------------------------------ gallery

/// A row of the gallery.
#[derive(Debug)]
struct Card {
    row_id: String,
    caption: Option<String>,
    /// The picture, or why there is none; nothing in a data set without pictures.
    picture: Option<Result<thumbnail::Thumbnail, String>>,
    path: Option<String>,
    marks: Vec<Mark>,
    /// Why boxes are missing.
    trouble: Option<String>,
}

impl Card {
    fn read(rows: &RecordBatch, row: usize) -> Result<Self, FormatError> {
        let schema = rows.schema();
        let caption = match text_column(&schema) {
            Some(name) => text_of(rows.column_by_name(name), name, row)?,
            None => None,
        };
        let (mut picture, mut path) = (None, None);
        if let Some(name) = image_column(&schema)
            && let Some(column) = rows.column_by_name(name)
        {
            let view = MediaView::try_new(column).map_err(|e| unreadable(name, e))?;
            path = view.path(row).map(str::to_owned);
            picture = Some(match view.bytes(row) {
                Some(bytes) => thumbnail(bytes).map_err(|e| e.to_string()),
                None => Err("the row has no image".to_owned()),
            });
        }
        if path.is_none() {
            path = text_of(rows.column_by_name("file_name"), "file_name", row)?;
        }
        let (mut marks, mut trouble) = match marks(rows, row, caption.as_deref().unwrap_or_default()) {
            Ok(marks) => (marks, None),
            Err(message) => (Vec::new(), Some(message)),
        };
        if marks.len() > CARD_PHRASES {
            trouble = Some(format!("{} more phrases are not shown", marks.len() - CARD_PHRASES));
            marks.truncate(CARD_PHRASES);
        }
        marks.iter_mut().for_each(|mark| mark.boxes.truncate(CARD_BOXES));
        let caption = caption.map(|text| excerpt(&text, CARD_CHARACTERS));
        let row_id = text_of(rows.column_by_name(ROW_ID), ROW_ID, row)?.unwrap_or_default();
        Ok(Self { row_id, caption, picture, path, marks, trouble })
    }
}

fn image_column(schema: &Schema) -> Option<&str> {
    schema
        .fields()
        .iter()
        .find(|f| is_media(f.data_type()) && media_kind(f.name()) == "Image")
        .map(|f| f.name().as_str())
}

/// `caption` or `text`, else the first column of text that is no name of something.
fn text_column(schema: &Schema) -> Option<&str> {
    let is_text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let named = |name: &str| schema.fields().iter().find(|f| f.name() == name && is_text(f.data_type()));
    let any = || {
        schema.fields().iter().find(|f| {
            is_text(f.data_type()) && ![ROW_ID, "file_name", "key", "__key__", "id", "url"].contains(&f.name().as_str())
        })
    };
    named("caption").or_else(|| named("text")).or_else(any).map(|f| f.name().as_str())
}

fn text_of(column: Option<&ArrayRef>, name: &str, row: usize) -> Result<Option<String>, FormatError> {
    let Some(column) = column else { return Ok(None) };
    let text = cast(&column.slice(row, 1), &DataType::Utf8).map_err(|e| unreadable(name, e))?;
    let text = text.as_string::<i32>();
    Ok((!text.is_null(0)).then(|| text.value(0).to_owned()))
}

fn unreadable(column: &str, error: impl std::fmt::Display) -> FormatError {
    FormatError::Column {
        column: column.to_owned(),
        message: format!("the report cannot read the column `{column}`: {error}"),
    }
}

/// Rules that bring the boxes of the phrase under the pointer (or with the focus) forward: one set for each index that a phrase has on this page.
fn phrase_rules(page: &mut String, phrases: usize) {
    for i in 0..phrases {
        push(
            page,
            format_args!(
                ".card:has([data-m=\"{i}\"]:is(:hover,:focus-visible)) :is(rect,.tag:not(.contained)):not([data-m=\"{i}\"]){{opacity:.08}}\
             .card:has([data-m=\"{i}\"]:is(:hover,:focus-visible)) rect[data-m=\"{i}\"]:not(.halo){{fill-opacity:.18;stroke-width:4}}\
             .card:has([data-m=\"{i}\"]:is(:hover,:focus-visible)) .tag[data-m=\"{i}\"]{{opacity:1;z-index:1}}\
             .card:has([data-m=\"{i}\"]:is(:hover,:focus-visible)) .s[data-a~=\"{i}\"]{{background-color:color-mix(in oklab,var(--k{}) 34%,transparent)}}\
             .card:has([data-m=\"{i}\"]:is(:hover,:focus-visible)) .phrase[data-m=\"{i}\"]{{border-color:currentColor}}\n",
                i % COLOURS,
            ),
        );
    }
}

/// Switches above the gallery, where there is something to switch.
fn controls(page: &mut String, cards: &[Card]) {
    let scores: Vec<f32> =
        cards.iter().flat_map(|c| &c.marks).flat_map(|m| &m.boxes).map(|(_, score)| *score).collect();
    if scores.is_empty() {
        return;
    }
    page.push_str("<form class=\"controls\" aria-label=\"What the photographs show\"><label><input type=\"checkbox\" id=\"boxes\" checked> boxes</label><label><input type=\"checkbox\" id=\"tags\" checked> labels</label>");
    if cards.iter().flat_map(|c| &c.marks).any(|m| m.contained) {
        page.push_str("<label><input type=\"checkbox\" id=\"contained\" checked> contained phrases</label>");
    }
    let (low, high) = scores.iter().fold((u8::MAX, 0), |(low, high), s| (low.min(tenth(*s)), high.max(tenth(*s))));
    if low < high {
        page.push_str(
            "<fieldset><legend>score ≥</legend><label><input type=\"radio\" name=\"score\" checked> any</label>",
        );
        for t in low + 1..=high {
            push(
                page,
                format_args!(
                    "<label><input type=\"radio\" name=\"score\" id=\"s{t}\"> {}</label>",
                    f32::from(t) / 10.0
                ),
            );
        }
        page.push_str("</fieldset>");
    }
    page.push_str("</form>");
}

/// The score's tenth as it is shown: 0.7 is 7, also where the nearest `f32` lies below.
fn tenth(score: f32) -> u8 {
    ((score * 100.0).round() / 10.0).floor().clamp(0.0, 10.0) as u8
}

fn gallery(page: &mut String, facts: &ReportFacts, cards: &[Card]) {
    if cards.is_empty() {
        page.push_str("<p class=\"empty\">The data set has no rows. The funnel above says where they went; <code>groundloom why ROW_ID</code> says it for one row.</p>");
        return;
    }
    let shown = cards.len() as u64;
    let which = if shown < facts.rows {
        format!("{} of {} rows, evenly over the data set.", count(shown), count(facts.rows))
    } else {
        format!("All {} rows.", count(shown))
    };
    let has_boxes = cards.iter().any(|c| !c.marks.is_empty());
    let hint = if has_boxes {
        " Point at a phrase or a box, or reach it with the Tab key, to see what belongs together."
    } else {
        ""
    };
    push(page, format_args!("<p class=\"small\">{which}{hint}</p><div class=\"gallery\">"));
    for card in cards {
        write_card(page, card);
    }
    page.push_str("</div>");
}

fn write_card(page: &mut String, card: &Card) {
    page.push_str("<article class=\"card\">");
    match &card.picture {
        Some(Ok(picture)) => write_picture(page, card, picture),
        Some(Err(message)) => push(page, format_args!("<div class=\"missing\">{}</div>", Text(message))),
        None => {}
    }
    page.push_str("<div class=\"text\">");
    match &card.caption {
        Some(caption) => write_caption(page, caption, &card.marks),
        None => page.push_str("<p class=\"caption none\">no caption</p>"),
    }
    if let Some(trouble) = &card.trouble {
        push(page, format_args!("<p class=\"trouble\">{}</p>", Text(trouble)));
    }
    if !card.marks.is_empty() {
        write_phrases(page, &card.marks);
    }
    page.push_str("<footer>");
    if let Some(path) = &card.path {
        push(page, format_args!("<span class=\"path\">{}</span>", Text(path)));
    }
    if let Some(Ok(picture)) = &card.picture {
        push(page, format_args!("<span>{} × {} {}</span>", picture.original.0, picture.original.1, picture.format));
    }
    push(page, format_args!("<code>{}</code></footer></div></article>", Text(&card.row_id)));
}

fn write_picture(page: &mut String, card: &Card, picture: &thumbnail::Thumbnail) {
    let (width, height) = picture.size;
    let alt = excerpt(card.caption.as_deref().unwrap_or("photograph without a caption"), 200);
    push(
        page,
        format_args!(
            "<div class=\"shot\"><img src=\"{}\" width=\"{width}\" height=\"{height}\" alt=\"{}\">",
            picture.uri,
            Text(&alt),
        ),
    );
    let mut boxes: Vec<(usize, &Mark, [f32; 4], f32)> = card
        .marks
        .iter()
        .enumerate()
        .flat_map(|(i, m)| m.boxes.iter().map(move |(xyxy, score)| (i, m, *xyxy, *score)))
        .collect();
    // Small boxes lie on top of large ones, so that both can be pointed at.
    let area = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1) * (y2 - y1);
    boxes.sort_by(|a, b| area(b.2).total_cmp(&area(a.2)));
    push(
        page,
        format_args!("<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"),
    );
    for (i, mark, [x1, y1, x2, y2], score) in &boxes {
        let (w, h) = (width as f32, height as f32);
        let place = format!(
            "x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" data-m=\"{i}\" data-t=\"{}\"",
            x1 * w,
            y1 * h,
            (x2 - x1) * w,
            (y2 - y1) * h,
            tenth(*score),
        );
        push(
            page,
            format_args!(
                "<rect class=\"halo{0}\" {place}/><rect class=\"{1}{0}\" {place}/>",
                contained(mark),
                colour(*i, mark)
            ),
        );
    }
    page.push_str("</svg>");
    let tags: Vec<Tag> = boxes
        .iter()
        .map(|(i, mark, [x1, y1, x2, _], score)| Tag {
            phrase: *i,
            score: *score,
            label: excerpt(&mark.label, 40),
            class: format!("{}{}", colour(*i, mark), contained(mark)),
            left: x1 * 100.0,
            top: y1 * 100.0,
            room: (x2 - x1) * 100.0,
        })
        .collect();
    for tag in spread(tags, picture.size) {
        push(
            page,
            format_args!(
                "<span class=\"tag {}\" data-m=\"{}\" data-t=\"{}\" style=\"left:{:.2}%;top:{:.2}%;max-width:max({:.2}%,2.9em)\"><b>{:.2}</b><span>{}</span></span>",
                tag.class,
                tag.phrase,
                tenth(tag.score),
                tag.left,
                tag.top,
                tag.room,
                tag.score,
                Text(&tag.label),
            ),
        );
    }
    page.push_str("</div>");
}

/// A box's label. Places are percentages of the picture's width and height.
struct Tag {
    phrase: usize,
    score: f32,
    label: String,
    class: String,
    left: f32,
    top: f32,
    /// How wide it may be.
    room: f32,
}

/// Moves labels down that would hide another's, best score first; one that finds no free place stays where it was.
///
/// The page's width is not known here: labels are taken to be as large as they are in a column of the gallery.
fn spread(mut tags: Vec<Tag>, (width, height): (u32, u32)) -> Vec<Tag> {
    const COLUMN: f32 = 400.0;
    const LINE: f32 = 21.0;
    const CHARACTER: f32 = 6.5;
    let line = LINE * 100.0 / (COLUMN * height as f32 / width as f32);
    let wide =
        |tag: &Tag| ((tag.label.chars().count() as f32 + 6.0) * CHARACTER * 100.0 / COLUMN).min(tag.room.max(10.0));
    tags.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut placed: Vec<Tag> = Vec::with_capacity(tags.len());
    for mut tag in tags {
        let hides = |top: f32| {
            placed
                .iter()
                .any(|p| (p.top - top).abs() < line && tag.left < p.left + wide(p) && p.left < tag.left + wide(&tag))
        };
        let free = (0..8).map(|lines| tag.top + lines as f32 * line).find(|top| *top + line <= 100.0 && !hides(*top));
        if let Some(top) = free {
            tag.top = top;
        }
        placed.push(tag);
    }
    placed
}

fn write_caption(page: &mut String, caption: &str, marks: &[Mark]) {
    page.push_str("<p class=\"caption\" dir=\"auto\">");
    for segment in segments(caption, marks) {
        let Some(&innermost) = segment.marks.last() else {
            push(page, Text(segment.text));
            continue;
        };
        let all: Vec<String> = segment.marks.iter().map(usize::to_string).collect();
        // One line under the text for each phrase that covers it, the longest phrase lowest.
        let lines = segment.marks.len();
        let images: Vec<String> =
            segment.marks.iter().map(|i| format!("linear-gradient(var(--k{0}),var(--k{0}))", i % COLOURS)).collect();
        let places: Vec<String> = (0..lines).map(|line| format!("0 calc(100% - {}px)", line * 4)).collect();
        push(
            page,
            format_args!(
                "<bdi class=\"s\" data-m=\"{innermost}\" data-a=\"{}\" style=\"--lines:{lines};background-image:{};background-position:{}\">{}</bdi>",
                all.join(" "),
                images.join(","),
                places.join(","),
                Text(segment.text),
            ),
        );
    }
    page.push_str("</p>");
}

fn write_phrases(page: &mut String, marks: &[Mark]) {
    page.push_str("<ul class=\"phrases\">");
    for (i, mark) in marks.iter().enumerate() {
        let boxes = match (mark.boxes.len(), mark.score()) {
            (0, _) | (_, None) => "no box".to_owned(),
            (1, Some(score)) => format!("{score:.2}"),
            (n, Some(score)) => format!("{n} boxes, {score:.2}"),
        };
        let title = if mark.contained {
            " title=\"Grounded, but no expression of its own: another expression contains it\""
        } else {
            ""
        };
        push(
            page,
            format_args!(
                "<li class=\"phrase {}{}\" data-m=\"{i}\" tabindex=\"0\"{title}><bdi>{}</bdi> <small>{boxes}</small></li>",
                colour(i, mark),
                contained(mark),
                Text(&excerpt(&mark.label, 80)),
            ),
        );
    }
    page.push_str("</ul>");
}

fn colour(i: usize, mark: &Mark) -> String {
    if mark.contained { "kc".to_owned() } else { format!("k{}", i % COLOURS) }
}

fn contained(mark: &Mark) -> &'static str {
    if mark.contained { " contained" } else { "" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn gallery_rows_are_even_and_never_twice() {
        assert_eq!(gallery_rows(0, 48), Vec::<u64>::new());
        assert_eq!(gallery_rows(3, 48), [0, 1, 2]);
        assert_eq!(gallery_rows(10, 4), [0, 2, 5, 7]);
        let rows = gallery_rows(u64::MAX, 48);
        assert!(rows.len() == 48 && rows.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn shares_never_mislead() {
        let cases = [
            (0, 0, "–"),
            (0, 10, "0 %"),
            (10, 10, "100 %"),
            (1, 100_000, "< 0.1 %"),
            (99_999, 100_000, "> 99.9 %"),
            (994, 1000, "99.4 %"),
            (1, 3, "33 %"),
        ];
        for (part, whole, shown) in cases {
            assert_eq!(percent(part, whole), shown);
        }
    }

    #[test]
    fn scores_are_grouped_as_they_are_shown() {
        for (score, group) in [(0.0, 0), (0.7, 7), (0.696, 7), (0.694, 6), (1.0, 10), (f32::NAN, 0)] {
            assert_eq!(tenth(score), group, "{score}");
        }
    }

    fn tag(left: f32, top: f32, score: f32) -> Tag {
        Tag { phrase: 0, score, label: "a dog".into(), class: String::new(), left, top, room: 50.0 }
    }

    #[test]
    fn labels_make_room_for_each_other() {
        let spread = spread(vec![tag(0.0, 0.0, 0.5), tag(1.0, 1.0, 0.9), tag(80.0, 0.0, 0.4)], (400, 400));
        let places: Vec<_> = spread.iter().map(|t| (t.left, t.top)).collect();
        assert_eq!(places[0], (1.0, 1.0), "the best score keeps its place");
        assert_eq!(places[1].0, 0.0);
        assert!(places[1].1 >= 1.0 + 5.0, "the one below it moves down: {places:?}");
        assert_eq!(places[2], (80.0, 0.0), "one beside them stays");
    }
}
