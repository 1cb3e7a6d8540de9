"""A transformers.Trainer for a few steps on the CPU that reports and saves nothing."""

import transformers


def tiny_trainer(model, folder, train, evaluate, *, callbacks=(), **options):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=train,
        eval_dataset=evaluate,
        callbacks=list(callbacks),
    )
