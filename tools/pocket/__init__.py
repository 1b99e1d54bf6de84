"""How the pocket model is made and scored.

    scenes, captions     the world: drawn shapes, and sentences about them
    tokenizers           the vocabularies of CLIP and T5
    train_text           both text encoders, taught to find in a sentence what it says
    train_vae            the autoencoder
    cache                latents and encoded captions, made once
    train_transformer    the transformer, on 128x128 and then on 256x256 pictures
    degrade              the blurred quarter-size picture
    train_controlnet     the upscaler
    edits, train_edit    a LoRA that edits a reference picture; tried for a short while, not shipped
    score_edit           how often it does
    export               writes assets/pocket/
    checker, score       what a picture shows, told from pixels; how often it is what was asked

``make pocket`` runs all of it but for edits. Every stage keeps its state under ``.cache/pocket``
and goes on from there when it is started again.
"""
