"""Find the best pair of frozen encoders by training all their connectors at once.

The map, in the order in which data meets the modules; a line of code may import only what stands above it:

    ledger     what a search costs: FLOPs from shapes, seconds, bytes
    machine    versions, hardware, commits and speed of where a result was made
    embed      pictures and captions become rows on disk
        zoo             encoders as data: what is declared, what a limit lets through
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
        tables          tables of paths and captions
        tars            tar shards, read where they lie
        clip_retrieval  folders of rows that clip-retrieval has made
        hub_data        data sets of the Hugging Face hub
        label_sets      classes and prompts for zero-shot classification
        data            the one door to all data sets
        networks        a spec becomes a picture network
        sentences       a spec becomes a sentence encoder
        feed            pictures on their way to an encoder
        encoders        a spec becomes a frozen encoder
        bare            the yardstick of embedding throughput
        identity        what an encoder is, told without building it
        check           declared facts held against the networks
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
        canonical       whitened coordinates
        directions      what of an encoder the other side predicts
        canonical_grid  all encoders in canonical coordinates, and the cross-covariances of all pairs
        consensus       one basis for the coordinates of all encoders
        solution        what every method gives: connectors and their cost
        closed_form     connectors without a gradient step
        hypernetwork    networks that emit connectors
        baseline        each pair trained by itself
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
    candidates the encoders and pairs that the limits let through
    prepare    from what was asked to rows on disk
    grids      cached rows put together as the methods see them
    packing    connectors as tensors and plain records
    scoring    connectors on rows: expected hits of every pair
    solve      the methods that were asked for, each run once and kept
    ladder     who is worth embedding further, in pure numbers
    promote    samples embedded for everyone, everything for those who could win
    board      methods on the test items: the leaderboard
    request    what a search is asked for
    forecast   what each method will cost, from shapes alone
    account    what a run says of itself
    search     the pipeline
    adopt      one more encoder for a finished run
    glimpse    a few test captions, and the pictures that the first pairs retrieve for them
    plan       what a search would cost, before anything is computed
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
        trials          one training after the other, each done once
        sweep           batch, length and rate of the baseline
        curve           score against FLOPs, every method on it
        collapse        trainings that ought to go wrong
        poster          growing zoos, and classes of scale
        promotion       samples embedded first, against everything
        planted         a synthetic zoo whose best pairs are known
        devices         what a search would need on accelerators
        grid            a search over a synthetic grid of any size
        adoption        each encoder left out and adopted
        measures        which measurements there are, and what is kept of one
    use        what is made of rows and connectors when the search is over
        index           rows as a Faiss index
    show       a saved run becomes a terminal table and one HTML file
        words           numbers and names as people read them
        view            what is shown, before it is a table or a page
        table           a run in the terminal
        chances         comparisons and draws, small enough for a page
        against         one run held against another
        payload         what the page of a run knows, as plain data
        page            a run as one HTML file
        address         the limits a page is opened with
        planned         a plan in the terminal
        benched         a measurement in the terminal
        drawn           score against FLOPs as a figure
        lists           encoders, cache entries, facts
        progress        bars on a terminal, plain lines elsewhere
    config     words and TOML files become configurations
    doctor     what is installed and what is wrong with it
    cli        words in, one library call, words out
        manners         what is said where, and what a mistake looks like
        options         options that commands share
        asking          what was typed becomes a configuration
        stores          zoo and cache commands
        searching       search, embed, rerun, report
        benching        bench
"""

__version__ = "0.1.0"
