"""Find the best pair of frozen encoders by training all their connectors at once.

The map, in the order in which data meets the modules; a line of code may import only what stands above it:

    ledger     what a search costs: FLOPs from shapes, seconds, bytes
    machine    versions, hardware, commits and speed of where a result was made
    embed      pictures and captions become rows on disk
        consent         what the user has said himself, and what may therefore be run
        zoo             encoders as data: what is declared, what a limit lets through
        plain           JSON that anyone may have written, and the types it should have
        factories       functions of a user's own files, run where he has named or knows them
        world           what a scene of the embedded data set is, and how one is drawn
        captions        a scene becomes sentences
        paint           a scene becomes pixels
        scenes          the embedded data set
        shards          one matrix of rows in pieces, read by memory map
        partial         rows of some items, embedded before the rest
        locks           one writer per entry of the cache
        upkeep          the cache seen from outside: sizes, soundness, pruning
        cache           rows written once, whole or not at all
        memory          facts about files, remembered between runs
        pictures        pictures, decoded when asked for
        samples         what every reader of a data set hands over
        splits          train, validation and test; who belongs to whom
        duplicates      nearly the same picture on both sides of a split
        streams         files that are read from begin to end and never kept
        tables          tables of paths and captions
        frames          data frames, written as tables
        tars            tar shards, read where they lie
        tar_streams     tar shards that come as streams
        clip_retrieval  folders of rows that clip-retrieval has made
        hub_data        data sets of the Hugging Face hub
        label_sets      classes and prompts for zero-shot classification
        data            the one door to all data sets
        clips           both sides of an open_clip model
        clip_captions   the caption side of one as sentence-transformers takes it
        networks        a spec becomes a picture network
        sentences       a spec becomes a sentence encoder
        feed            pictures on their way to an encoder
        spread          rows of pictures from all cores of a CPU
        fitting         batches that memory does not hold, halved
        encoders        a spec becomes a frozen encoder
        bare            the yardstick of embedding throughput
        identity        what an encoder is, told without building it
        check           declared facts held against the networks
        declaring       an encoder as a zoo file declares it
        recipes         what the embedded zoo is made of
        build_images    how its image encoders learn
        build_texts     how its text encoders learn
        build           the embedded zoo made again
    align      rows become connectors, all pairs at once
        grid            the rows that all methods see
        batches         which items and pairs a step sees
        connectors      linear maps and contrastive losses
        damped          steps along the mean gradient, as far as it is no noise
        train           one loop for hypernetworks and baseline
        moments         mean and covariance of rows
        canonical       whitened coordinates
        sides           one row for each picture, on either side
        directions      what of an encoder the other side predicts
        targets         the few coordinates of the other side from which that is found
        canonical_grid  all encoders in canonical coordinates, and the cross-covariances of all pairs
        consensus       one basis for the coordinates of all encoders
        solution        what every method gives: connectors and their cost
        closed_form     connectors without a gradient step
        hypernetwork    networks that emit connectors
        baseline        each pair trained by itself
        polish          a few pairs as good as they get
        residual        the default hypernetwork trained
        adoption        one more encoder beside those that were trained together
        sliced          the poster's hypernetwork trained
    rank       connectors become an order one can trust
        metrics         retrieval and zero-shot scores
        best            the chance of each pair to be the best
        resampling      a paired bootstrap over test images
        ranking         order, intervals, ties
        standings       pairs compared once, the order among any of them at once
        agreement       one order held against another, and the noise ceiling
        scores          training-free scores
    record     what a run records: columns and keys
    run        what a run is on disk
    relimit    a finished run under other limits
    kept       connectors that a run has kept, and which of a pair's is taken
    processes  several processes on one job: who speaks, who writes, how they talk
    shares     work cut into shares of about equal cost
    candidates the encoders and pairs that the limits let through
    prepare    from what was asked to rows on disk
    grids      cached rows put together as the methods see them
    packing    connectors as tensors and plain records
    scoring    connectors on rows: expected hits of every pair
    solve      the methods that were asked for, each run once and kept
    ladder     who is worth embedding further, in pure numbers
    promote    samples embedded for everyone, everything for those who could win
    board      methods on the test items: the leaderboard
    ceiling    two encoders that were trained together, beside the pairs
    config     words and TOML files become configurations
    request    what a search is asked for
    forecast   what each method will cost, from shapes alone
    footprint  memory that the parts of a search take, from shapes alone
    account    what a run says of itself
    together   what the first of several processes asks of the others
    pipeline   the search
    assist     what the others do
    joined     a finished run and a newcomer's pairs as one run
    adopt      one more encoder for a finished run
    glimpse    a few test captions, and the pictures that the first pairs retrieve for them
    plan       what a search would cost, before anything is computed
    use        what is made of rows and connectors when the search is over
        index           rows as a Faiss index
        joint           what joins a pair
        chosen          one pair of a finished run
        folder          a pair as a folder of its own
        dual            a pair as one model of pictures and captions
        importers       what others have embedded or trained
        weights         encoders' weights beside the connector
        probes          by what a pair written for another program is checked
        picture_module  an image encoder of a factory as sentence-transformers takes it
        as_sentence_transformer  a pair as sentence-transformers takes it
        as_onnx         a pair as onnxruntime takes it
        card            the model card of an exported pair
        export          a pair as a folder that runs by itself
        opened          a model by where it lies
        likeness        whether two models are the same to whoever searches
        sources         the pictures that a user named
        stock           embedded pictures on disk, with their places
        gallery         a folder of embedded pictures that can be searched
        update          an index made, or brought up to date
        retrieve        pictures of an index by words or by a picture
        classes         the classes that pictures are sorted into
        classify        pictures sorted into classes that were never trained on
        groups          groups of a label set's pictures
        evaluate        how good a model is on a set
        clip_benchmark  a pair inside CLIP_benchmark
    study      Optuna over the settings of a training and over pairs
        asked           what varies, what is scored, who proposes, when it ends
        space           fields of a training with ranges and choices
        samplers        who proposes, and who ends trials early
        seats           trials that wait; those of workers that are gone given back
        findings        what `study.json` says, as types
        kept            what a study's folder tells of it
        storage         where a study is kept, and what is refused there
        task            what a trial does
        tuning          trials that are trainings
        pairs           trials that are pairs of encoders
        work            trials done, by one process or several
        replay          trials over pairs whose scores are known
        outcome         what came of a study, and what repeats its best trial
        conduct         a study from its first word to its record
    bench      figures that a sceptic can make again
        sheet           what a measurement gives
        opened          what was asked for as rows
        watermark       memory that a block of code takes
        published       the account of the method's authors
        timed           every method's FLOPs, seconds and memory
        throughput      embedding against a bare loop
        loss_memory     the loss of a large batch
        speed           all of what this machine does, in one run
        worlds          planted test sets, of one pair or of a grid
        intervals       simulated test sets against intervals and P(best)
        costs           what trials will cost, from shapes
        dear            what two epochs pair by pair cost, spent otherwise
        trials          one training after the other, each done once
        points          a method with its setting, and its trials under every seed
        sweep           batch, length and rate of the baseline
        curve           score against FLOPs, every method on it
        coordinates     wider coordinates or longer training
        finalists       choosing among polished pairs
        collapse        trainings that ought to go wrong
        poster          growing zoos, and classes of scale
        promotion       samples embedded first, against everything
        planted         a synthetic zoo whose best pairs are known
        proposals       a study over pairs, against promotion
        devices         what a search would need on accelerators
        scale           what a search over many pictures costs, on which machine
        grid            a search over a synthetic grid of any size
        adoption        each encoder left out and adopted
        index           Faiss indexes of many pictures, on one core
        measures        which measurements there are, and what is kept of one
    hyperclip  a small image encoder fits its prompts
        normalisation   scales and biases: found, given from outside, folded in
        hypernetwork    text embeddings become changes of scales and biases
        architectures   the image encoders it trains
        text            captions become rows, for a model from scratch
        model           pictures and captions embedded, adapted or not
        pairs           what a training step sees
        checkpoint      a training as it stands, in one file
        rollback        the state that a training ends in
        train           one loop for HyperCLIP and its baseline
        calibration     the scale and bias that a trained pair begins with
        stored          models on disk
        specialise      one set of prompts folded into the image encoder
        measure         zero-shot and retrieval of a model
        winner          a run's winner as the start of a model
        adapt           the stage: every method trained and scored
        parts           a label set cut in two, and its worst group
        probe           a linear probe that starts at the classes' rows
        bound           scales and biases tuned on the classes themselves
        yardsticks      probes and bounds of what was trained
        overhead        what the hypernetwork costs in training
        eight           the same for the eight architectures of the paper
        paper_sheets    the paper's four tables, drawn from records
        paper           the paper's four tables made by one call
        vocabulary      which classes a caption names
        language        which language a caption is in
        rules           pairs that are worth training on
        table_copies    tables without some of their captions
        tar_copies      tar shards without some of their captions
        filtering       data copied without the rest
        class_sets      class sets of the scenes' own vocabulary
        effect          HyperCLIP and its baseline on held-out class sets
    show       a saved run becomes a terminal table and one HTML file
        words           numbers and names as people read them
        view            what is shown, before it is a table or a page
        table           a run in the terminal
        chances         comparisons and draws, small enough for a page
        against         one run held against another
        payload         what the page of a run knows, as plain data
        shell           what every page is made of
        studied         a study in the terminal
        trials          what a page knows of a study
        study_page      a study as one HTML file
        page            a run as one HTML file
        address         the limits a page is opened with
        planned         a plan in the terminal
        benched         a measurement in the terminal
        adapted         an adaptation in the terminal
        papered         the paper's four tables in the terminal
        evaluated       scores of a model on sets, in the terminal
        drawn           score against FLOPs as a figure
        lists           encoders, cache entries, facts
        filtered        what a filter dropped
        progress        bars on a terminal, plain lines elsewhere
    notebook   searches from Python: data frames in, tables and a model out
    doctor     what is installed and what is wrong with it
    cli        words in, one library call, words out
        manners         what is said where, and what a mistake looks like
        options         options that commands share
        examples        what stands below the help of each command
        asking          what was typed becomes a configuration
        stores          zoo and cache commands
        searching       search, embed, rerun, report
        using           classify, index, retrieve, evaluate
        benching        bench
        tabling         adapt --table
        adapting        adapt, specialise
        filtering       filter
        exporting       export, import
        studying        study
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperalign.notebook import SearchResult as SearchResult
    from hyperalign.notebook import open_result as open_result
    from hyperalign.notebook import search as search
    from hyperalign.use.dual import DualEncoder as DualEncoder
    from hyperalign.use.dual import load as load
    from hyperalign.use.dual import open_pair as open_pair
    from hyperalign.use.export import export as export

__version__ = "0.1.0"

_HOMES = {  # imported when first asked for
    "DualEncoder": "use.dual",
    "SearchResult": "notebook",
    "export": "use.export",
    "load": "use.dual",
    "open_pair": "use.dual",
    "open_result": "notebook",
    "search": "notebook",
}


def __getattr__(name: str) -> Any:
    """Give what the package offers; what is heavy is imported when it is asked for, and not before."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperalign' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hyperalign.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List what the package offers beside what is imported already."""
    return sorted({*globals(), *_HOMES})
